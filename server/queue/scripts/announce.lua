#!lua flags=allow-oom
-- needs: history
-- A worker says that it lives, and publishes the specs that it is given. Adds up, once a second, what batches have left to be counted.
-- ARGV: worker, its message, ms until it counts as dead, then per spec: digest, bundle.json. Returns 1 if Redis knew the worker, else 0.

local MOST_BATCHES = 2000
count_batches(MOST_BATCHES)
local known = call('EXISTS', 'worker:' .. ARGV[1])
call('SET', 'worker:' .. ARGV[1], ARGV[2], 'PX', ARGV[3])
call('SADD', 'workers', ARGV[1])
call('EXPIRE', 'suspects:' .. ARGV[1], RECORD_TTL_S)
for i = 4, #ARGV, 2 do call('SET', 'spec:' .. ARGV[i], ARGV[i + 1]) end
return known
