#!lua flags=allow-oom
-- A worker's heartbeat, once a second, which also publishes specs and adds up the statistics of batches that have ended.
-- ARGV: msgpack of an Announcement, the worker's message, then the bundle.json of each spec.
-- Returns {1 if Redis knew the worker, 1 if Redis may soon refuse plain commands that need memory}.
local MAX_BATCHES, NEARLY_FULL = 2000, 0.9
local KNOWN_S, MAX_KNOWN, MAX_KNOWN_BYTES = 7 * 86400, 1000, 16 * 1024 * 1024
local args = cmsgpack.unpack(ARGV[1])
expect('SCARD', 'workers')
expect('ZCARD', 'known')
count_batches(MAX_BATCHES)
local known = call('EXISTS', 'worker:' .. args.worker)
call('SET', 'worker:' .. args.worker, ARGV[2], 'PX', args.ttl_ms)
call('SADD', 'workers', args.worker)
call('EXPIRE', 'suspects:' .. args.worker, RECORD_TTL_S)
for i, digest in ipairs(args.specs) do call('SET', 'spec:' .. digest, ARGV[2 + i], 'EX', KNOWN_S) end
for digest, is_served in pairs(args.published) do
  call('EXPIRE', 'spec:' .. digest, KNOWN_S)
  if is_served then call('ZADD', 'known', now_ms(), digest) end
end

-- Forgets the oldest content beyond the limits, and what has expired.
local nbytes = 0
for i, digest in ipairs(next(args.published) and call('ZREVRANGE', 'known', 0, -1) or {}) do
  local size = tonumber(try('STRLEN', 'spec:' .. digest)) or 0  -- of another type: not ours
  nbytes = nbytes + size
  if i > MAX_KNOWN or nbytes > MAX_KNOWN_BYTES or size == 0 then
    call('ZREM', 'known', digest)
    call('DEL', 'spec:' .. digest)
  end
end
local memory = redis.pcall('INFO', 'memory')
local used, limit = string.match(memory.err or memory, 'used_memory:(%d+)'), string.match(memory.err or memory, 'maxmemory:(%d+)')
local is_full = not limit or tonumber(limit) > 0 and tonumber(used) > NEARLY_FULL * limit
return {known, is_full and 1 or 0}
