#!lua flags=allow-oom
-- A piece of what a job has made. It is written above maxmemory too, as small answers are: the job's end frees what it took, and it is bounded by
-- what is in flight. ARGV: key, where the piece begins, the piece, ms that the value outlives it.
call('SETRANGE', ARGV[1], ARGV[2], ARGV[3])
call('PEXPIRE', ARGV[1], ARGV[4])
return redis.status_reply('OK')
