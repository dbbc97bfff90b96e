#!lua flags=allow-oom
-- A worker says that it lives, and publishes the specs that it is given. Adds up, once a second, what batches have left to be counted.
-- ARGV: msgpack of an Announcement, the worker's message, then the bundle.json of each spec.
-- Returns {1 if Redis knew the worker, 1 if Redis may soon refuse plain commands that need memory}.
local MOST_BATCHES, NEARLY_FULL = 2000, 0.9
local args = cmsgpack.unpack(ARGV[1])
expect('SCARD', 'workers')
count_batches(MOST_BATCHES)
local known = call('EXISTS', 'worker:' .. args.worker)
call('SET', 'worker:' .. args.worker, ARGV[2], 'PX', args.ttl_ms)
call('SADD', 'workers', args.worker)
call('EXPIRE', 'suspects:' .. args.worker, RECORD_TTL_S)
for i, digest in ipairs(args.specs) do call('SET', 'spec:' .. digest, ARGV[2 + i]) end
local memory = redis.pcall('INFO', 'memory')
local used, most = string.match(memory.err or memory, 'used_memory:(%d+)'), string.match(memory.err or memory, 'maxmemory:(%d+)')
local is_full = not most or tonumber(most) > 0 and tonumber(used) > NEARLY_FULL * most
return {known, is_full and 1 or 0}
