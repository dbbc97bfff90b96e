#!lua
-- Keeps vectors of texts for whoever reads the same text again. Those that were used longest ago leave first. One owner has a quarter at most:
-- beyond that the owner's own leave.
-- ARGV: most bytes in all, ms that they are kept, owner, how many ids of vectors that were just used, these ids, then id and vector of each new one.
-- `vector:<id>` holds one, `vectors` the ids by the time of their last use, `vectors:of:<owner>` likewise those of one owner, `vectors:owners`
-- `<bytes>:<owner>` by id, `vectors:bytes` bytes by owner.
local most, ttl, owner, used = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
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
for i = 5, 4 + used do
  local _, whose = owned(ARGV[i])
  if whose and call('PEXPIRE', 'vector:' .. ARGV[i], ttl) == 1 then
    call('ZADD', 'vectors', now, ARGV[i])
    try('ZADD', 'vectors:of:' .. whose, now, ARGV[i])
  end
end
for i = 5 + used, #ARGV, 2 do
  local id, bytes = ARGV[i], #ARGV[i + 1] + ENTRY_BYTES
  if call('EXISTS', 'vector:' .. id) == 0 and bytes <= most / 4 then
    forget(id)  -- where Redis has let go of it
    make_room(owner, 'vectors:of:' .. owner, bytes, most / 4)
    make_room(all, 'vectors', bytes, most)
    call('SET', 'vector:' .. id, ARGV[i + 1], 'PX', ttl)
    call('ZADD', 'vectors', now, id)
    call('ZADD', 'vectors:of:' .. owner, now, id)
    call('HSET', 'vectors:owners', id, bytes .. ':' .. owner)
    for _, name in ipairs({all, owner}) do add('vectors:bytes', name, bytes) end
  end
end
return redis.status_reply('OK')
