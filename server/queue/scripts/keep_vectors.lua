#!lua
-- Keeps vectors of texts for whoever reads the same text again. Those that were used longest ago leave first; one owner has a quarter at most.
-- ARGV: most bytes in all, ms that they are kept, owner, how many ids of vectors that were just used, these ids, then id and vector of each new one.
-- `vector:<id>` holds one, `vectors` the ids by the time of their last use, `vectors:of` `<bytes>:<owner>` by id, `vectors:bytes` bytes by owner.

local most, ttl, owner, used = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
local now, all = now_ms(), 'all '

local function forget(id)
  local bytes, whose = string.match(call('HGET', 'vectors:of', id) or '', '^(%d+):(.*)$')
  call('DEL', 'vector:' .. id)
  call('ZREM', 'vectors', id)
  call('HDEL', 'vectors:of', id)
  for _, name in ipairs(bytes and {all, whose} or {}) do
    if call('HINCRBY', 'vectors:bytes', name, -bytes) <= 0 then call('HDEL', 'vectors:bytes', name) end
  end
end

local function held(name) return tonumber(call('HGET', 'vectors:bytes', name) or '0') end

for _, id in ipairs(call('ZRANGEBYSCORE', 'vectors', '-inf', now - ttl)) do forget(id) end
for i = 5, 4 + used do
  if call('PEXPIRE', 'vector:' .. ARGV[i], ttl) == 1 then call('ZADD', 'vectors', 'XX', now, ARGV[i]) end
end
for i = 5 + used, #ARGV, 2 do
  local id, bytes = ARGV[i], #ARGV[i + 1] + 200  -- with what Redis takes for its keys
  if call('EXISTS', 'vector:' .. id) == 0 and held(owner) + bytes <= most / 4 then
    forget(id)  -- where Redis has let go of it
    while held(all) + bytes > most and call('ZCARD', 'vectors') > 0 do forget(call('ZRANGE', 'vectors', 0, 0)[1]) end
    call('SET', 'vector:' .. id, ARGV[i + 1], 'PX', ttl)
    call('ZADD', 'vectors', now, id)
    call('HSET', 'vectors:of', id, bytes .. ':' .. owner)
    for _, name in ipairs({all, owner}) do call('HINCRBY', 'vectors:bytes', name, bytes) end
  end
end
return redis.status_reply('OK')
