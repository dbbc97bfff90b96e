#!lua
-- Keeps vectors of texts for whoever reads the same text again. Those that were used longest ago leave first; one owner has a quarter at most, and
-- beyond it its own leave.
-- ARGV: most bytes in all, ms that they are kept, owner, how many ids of vectors that were just used, these ids, then id and vector of each new one.
-- `vector:<id>` holds one, `vectors` the ids by the time of their last use, `vectors:owner:<owner>` those of one owner, `vectors:of`
-- `<bytes>:<owner>` by id, `vectors:bytes` bytes by owner.

local most, ttl, owner, used = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
local now, all = now_ms(), 'all '
local MOST_EXPIRED = 64  -- are let go of in one call, which nobody is to wait for long

local counted = {}  -- bytes by owner, written at the end
local function held(name)
  counted[name] = counted[name] or tonumber(call('HGET', 'vectors:bytes', name) or '0')
  return counted[name]
end
local function count(name, bytes) counted[name] = held(name) + bytes end

local function owner_of(id) return string.match(call('HGET', 'vectors:of', id) or '', '^(%d+):(.*)$') end

local function forget(id)
  local bytes, whose = owner_of(id)
  call('DEL', 'vector:' .. id)
  call('ZREM', 'vectors', id)
  if not bytes then return end
  call('HDEL', 'vectors:of', id)
  call('ZREM', 'vectors:owner:' .. whose, id)
  count(all, -bytes)
  count(whose, -bytes)
end

local function forget_oldest(ids)
  local id = call('ZRANGE', ids, 0, 0)[1]
  if id then forget(id) end
  return id
end

for _, id in ipairs(call('ZRANGEBYSCORE', 'vectors', '-inf', now - ttl, 'LIMIT', 0, MOST_EXPIRED)) do forget(id) end
for i = 5, 4 + used do
  local id = ARGV[i]
  if call('PEXPIRE', 'vector:' .. id, ttl) == 1 then
    local _, whose = owner_of(id)
    call('ZADD', 'vectors', 'XX', now, id)
    if whose then call('ZADD', 'vectors:owner:' .. whose, 'XX', now, id) end
  end
end
for i = 5 + used, #ARGV, 2 do
  local id, bytes = ARGV[i], #ARGV[i + 1] + 800  -- with what Redis takes for ids and their order
  if bytes <= most / 4 and call('EXISTS', 'vector:' .. id) == 0 then
    if owner_of(id) then forget(id) end  -- Redis has let go of it
    while held(owner) + bytes > most / 4 and forget_oldest('vectors:owner:' .. owner) do end
    while held(all) + bytes > most and forget_oldest('vectors') do end
    call('SET', 'vector:' .. id, ARGV[i + 1], 'PX', ttl)
    call('ZADD', 'vectors', now, id)
    call('ZADD', 'vectors:owner:' .. owner, now, id)
    call('HSET', 'vectors:of', id, bytes .. ':' .. owner)
    count(all, bytes)
    count(owner, bytes)
  end
end
for name, bytes in pairs(counted) do
  if bytes > 0 then call('HSET', 'vectors:bytes', name, bytes) else call('HDEL', 'vectors:bytes', name) end
end
return redis.status_reply('OK')
