#!lua
-- Keeps vectors of texts for later requests with the same texts. The least recently used are evicted first. An owner has at most a quarter of
-- the memory; beyond that, its own vectors are evicted.
-- ARGV: msgpack of a VectorUse, then the vector of each new one.
local args = cmsgpack.unpack(ARGV[1])
local max_bytes, ttl, owner = args.max_bytes, args.ttl_ms, args.owner
local now, all = now_ms(), 'all '
local ENTRY_BYTES = 650  -- memory of an id in all these keys; measured with INFO memory
local MAX_EXPIRED_VECTORS = 200

expect('ZCARD', 'vectors', 'vectors:of:' .. owner)
expect('HLEN', 'vectors:owners', 'vectors:bytes')
local function size_and_owner(id) return string.match(call('HGET', 'vectors:owners', id) or '', '^(%d+):(.*)$') end

local function remove_vector(id)
  local bytes, vector_owner = size_and_owner(id)
  call('DEL', 'vector:' .. id)
  call('ZREM', 'vectors', id)
  call('HDEL', 'vectors:owners', id)
  if not bytes then return end
  try('ZREM', 'vectors:of:' .. vector_owner, id)
  for _, name in ipairs({all, vector_owner}) do if increment('vectors:bytes', name, -bytes) <= 0 then call('HDEL', 'vectors:bytes', name) end end
end

local function bytes_of(name) return tonumber(call('HGET', 'vectors:bytes', name) or '0') or 0 end

local function evict(name, key, bytes, bound)
  while bytes_of(name) + bytes > bound and call('ZCARD', key) > 0 do remove_vector(call('ZRANGE', key, 0, 0)[1]) end
end

for _, id in ipairs(call('ZRANGEBYSCORE', 'vectors', '-inf', now - ttl, 'LIMIT', 0, MAX_EXPIRED_VECTORS)) do remove_vector(id) end
for _, id in ipairs(args.used) do
  local _, vector_owner = size_and_owner(id)
  if vector_owner and call('PEXPIRE', 'vector:' .. id, ttl) == 1 then
    call('ZADD', 'vectors', now, id)
    try('ZADD', 'vectors:of:' .. vector_owner, now, id)
  end
end
for i, id in ipairs(args.new) do
  local bytes = #ARGV[1 + i] + ENTRY_BYTES
  if call('EXISTS', 'vector:' .. id) == 0 and bytes <= max_bytes / 4 then
    remove_vector(id)  -- if Redis has evicted its vector
    evict(owner, 'vectors:of:' .. owner, bytes, max_bytes / 4)
    evict(all, 'vectors', bytes, max_bytes)
    call('SET', 'vector:' .. id, ARGV[1 + i], 'PX', ttl)
    call('ZADD', 'vectors', now, id)
    call('ZADD', 'vectors:of:' .. owner, now, id)
    call('HSET', 'vectors:owners', id, bytes .. ':' .. owner)
    for _, name in ipairs({all, owner}) do increment('vectors:bytes', name, bytes) end
  end
end
return redis.status_reply('OK')
