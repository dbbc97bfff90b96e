#!lua flags=allow-oom
-- A piece of what a job has made. It is written above maxmemory too, as small answers are: the job's end frees what it took, and it is bounded by
-- what is in flight. ARGV: msgpack of {key, where the piece begins, ms that the value outlives it}, the piece.
local key, at, ttl_ms = unpack(cmsgpack.unpack(ARGV[1]))
call('SETRANGE', key, at, ARGV[2])
call('PEXPIRE', key, ttl_ms)
return redis.status_reply('OK')
