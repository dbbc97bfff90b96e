#!lua flags=allow-oom
-- A worker says that it lives, and publishes the specs that it is given. Adds up, once a second, what batches have left to be counted.
-- ARGV: worker, its message, ms until it counts as dead, then per spec: digest, bundle.json.
-- Returns {1 if Redis knew the worker, 1 if Redis may soon refuse plain commands that need memory}.
local MOST_BATCHES, NEARLY_FULL = 2000, 0.9
expect('SCARD', 'workers')
count_batches(MOST_BATCHES)
local known = call('EXISTS', 'worker:' .. ARGV[1])
call('SET', 'worker:' .. ARGV[1], ARGV[2], 'PX', ARGV[3])
call('SADD', 'workers', ARGV[1])
call('EXPIRE', 'suspects:' .. ARGV[1], RECORD_TTL_S)
for i = 4, #ARGV, 2 do call('SET', 'spec:' .. ARGV[i], ARGV[i + 1]) end
local memory = redis.pcall('INFO', 'memory')
local used, most = string.match(memory.err or memory, 'used_memory:(%d+)'), string.match(memory.err or memory, 'maxmemory:(%d+)')
local is_full = not most or tonumber(most) > 0 and tonumber(used) > NEARLY_FULL * most
return {known, is_full and 1 or 0}
