#!lua flags=allow-oom
-- A worker is about to run a batch: records what is in it, since only these may be what it dies of.
-- ARGV: worker, its slot, msgpack of {'alone' or 'together', {job id…}}. Returns now ms.

if call('HSET', 'suspects:' .. ARGV[1], ARGV[2], ARGV[3]) == 1 then call('EXPIRE', 'suspects:' .. ARGV[1], RECORD_TTL_S) end
return now_ms()
