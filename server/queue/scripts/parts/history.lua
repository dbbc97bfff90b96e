-- Statistics: a hash history:<step> of counts for each step of 5 s, kept a little longer than it is shown, and those of each bundle.

local STEP_MS, HISTORY_TTL_S = 5000, 960
local function step_of(ms) return math.floor(ms / STEP_MS) end

-- Adds to a counter of a hash, which starts again if its value is not a number.
local function increment(key, name, amount)
  local sum = try('HINCRBY', key, name, amount)
  if type(sum) == 'number' then return sum end
  call('HSET', key, name, amount)
  return amount
end

-- Returns the table in a msgpack; nil if there is none.
local function decode(packed)
  local is_ours, value = pcall(cmsgpack.unpack, packed)
  return is_ours and type(value) == 'table' and value or nil
end

local function history_at(step) return 'history:' .. string.format('%d', step) end

local function add_count(step, name, amount)
  local key = history_at(step)
  increment(key, name, string.format('%.0f', amount))
  call('EXPIRE', key, HISTORY_TTL_S)
end

local function add_up(sums, key, amounts)
  sums[key] = sums[key] or {}
  for name, amount in pairs(amounts) do sums[key][name] = (sums[key][name] or 0) + amount end
end

-- Adds up the statistics of at most `max_count` batches that have ended since (endings.lua) and were not counted yet.
local function count_batches(max_count)
  local batches = call('LRANGE', 'stats:batches', 0, max_count - 1)
  if #batches == 0 then return end
  local bundles, steps, latest = {}, {}, {}
  for _, packed in ipairs(batches) do
    local bundle, bundle_counts, ended_ms, step_counts = unpack(decode(packed) or {})
    if bundle_counts then add_up(bundles, 'stats:' .. bundle, bundle_counts) end
    if ended_ms then
      add_up(steps, step_of(ended_ms), step_counts)
      latest['stats:' .. bundle] = string.format('%.0f', ended_ms)
    end
  end
  for key in pairs(bundles) do expect('HLEN', key) end
  for step in pairs(steps) do expect('HLEN', history_at(step)) end
  call('LTRIM', 'stats:batches', #batches, -1)
  for step, counts in pairs(steps) do for name, amount in pairs(counts) do add_count(step, name, amount) end end
  for key, counts in pairs(bundles) do
    if latest[key] then call('HSET', key, 'last_inference', latest[key]) end
    for name, amount in pairs(counts) do if amount ~= 0 then increment(key, name, string.format('%.0f', amount)) end end
  end
end
