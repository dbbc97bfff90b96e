-- What happens in each step of 5 s: a hash history:<step> of counts, kept a little longer than it is shown.

local STEP_MS, HISTORY_TTL_S = 5000, 960

local function step_of(ms) return math.floor(ms / STEP_MS) end

local function note(step, name, amount)
  local key = 'history:' .. string.format('%d', step)
  redis.call('HINCRBY', key, name, string.format('%.0f', amount))
  redis.call('EXPIRE', key, HISTORY_TTL_S)
end
