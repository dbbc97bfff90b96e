#!lua flags=allow-oom
-- Writes a piece of a job's output, as small replies are written: even above maxmemory, because the job's end frees memory, and the jobs in flight
-- bound it. ARGV: msgpack of {key, offset of the piece, ms for which the value outlives it}, the piece.
local key, at, ttl_ms = unpack(cmsgpack.unpack(ARGV[1]))
call('SETRANGE', key, at, ARGV[2])
call('PEXPIRE', key, ttl_ms)
return redis.status_reply('OK')
