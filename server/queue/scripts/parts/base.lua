-- Stands before every script. One Redis holds all keys of a shard, so scripts may compute key names; the clock is always Redis'.

local GROUP = 'workers'
local HANDED_BACK = 'handed-back'
local LINGER_MS = 60000  -- how long a job's keys outlive its deadline
local REPLIES_TTL_S = 60

local function now_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end
