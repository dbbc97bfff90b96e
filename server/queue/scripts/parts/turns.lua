-- What one process does for all, once in a while.

-- Whether it is `who`'s turn: nobody has had one for `ms`. A turn that lasts longer than that began before the clock was set back.
local function take_turn(key, who, ms)
  if redis.call('PTTL', key) > tonumber(ms) then redis.call('DEL', key) end
  return redis.call('SET', key, who, 'NX', 'PX', ms) and true or false
end
