#!lua
-- Keeps vectors of texts for whoever reads the same text again. Those that were used longest ago leave first. One owner has a quarter at most:
-- beyond that the owner's own leave.
-- ARGV: msgpack of a VectorUse, then the vector of each new one.
local args = cmsgpack.unpack(ARGV[1])
local most, ttl, owner = args.max_bytes, args.ttl_ms, args.owner
local now, all = now_ms(), 'all '
local ENTRY_BYTES = 650  -- what Redis takes for an id in all of these; measured with INFO memory
local MOST_EXPIRED = 200

expect('ZCARD', 'vectors', 'vectors:of:' .. owner)
expect('HLEN', 'vectors:owners', 'vectors:bytes')
local function owned(id) return string.match(call('HGET', 'vectors:owners', id) or '', '^(%d+):(.*)$') end

local function forget(id)
  local bytes, whose = owned(id)
  call('DEL', 'vector:' .. id)
  call('ZREM', 'vectors', id)
  call('HDEL', 'vectors:owners', id)
  if not bytes then return end
  try('ZREM', 'vectors:of:' .. whose, id)
  for _, name in ipairs({all, whose}) do if add('vectors:bytes', name, -bytes) <= 0 then call('HDEL', 'vectors:bytes', name) end end
end

local function held(name) return tonumber(call('HGET', 'vectors:bytes', name) or '0') or 0 end

local function make_room(name, key, bytes, bound)
  while held(name) + bytes > bound and call('ZCARD', key) > 0 do forget(call('ZRANGE', key, 0, 0)[1]) end
end

for _, id in ipairs(call('ZRANGEBYSCORE', 'vectors', '-inf', now - ttl, 'LIMIT', 0, MOST_EXPIRED)) do forget(id) end
for _, id in ipairs(args.used) do
  local _, whose = owned(id)
  if whose and call('PEXPIRE', 'vector:' .. id, ttl) == 1 then
    call('ZADD', 'vectors', now, id)
    try('ZADD', 'vectors:of:' .. whose, now, id)
  end
end
for i, id in ipairs(args.new) do
  local bytes = #ARGV[1 + i] + ENTRY_BYTES
  if call('EXISTS', 'vector:' .. id) == 0 and bytes <= most / 4 then
    forget(id)  -- where Redis has let go of it
    make_room(owner, 'vectors:of:' .. owner, bytes, most / 4)
    make_room(all, 'vectors', bytes, most)
    call('SET', 'vector:' .. id, ARGV[1 + i], 'PX', ttl)
    call('ZADD', 'vectors', now, id)
    call('ZADD', 'vectors:of:' .. owner, now, id)
    call('HSET', 'vectors:owners', id, bytes .. ':' .. owner)
    for _, name in ipairs({all, owner}) do add('vectors:bytes', name, bytes) end
  end
end
return redis.status_reply('OK')
