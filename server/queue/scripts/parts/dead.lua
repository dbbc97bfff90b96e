-- Who has died, and of what it may have died. Needs jobs back.

local MOST_PENDING = 256

-- Consumers of a stream that have entries in their hands and no worker:<id> key: {name…}.
local function dead_consumers(stream, me)
  local names = {}
  local consumers = redis.pcall('XINFO', 'CONSUMERS', stream, GROUP)
  for _, flat in ipairs(consumers) do
    local consumer = to_table(flat)
    if consumer.name ~= me and consumer.pending > 0 and redis.call('EXISTS', 'worker:' .. consumer.name) == 0 then
      names[#names + 1] = consumer.name
    end
  end
  return names
end

-- What a dead worker was running (begin_step.lua): job id → 'alone' or 'together'. nil if it kept no record.
local function last_steps(dead)
  local slots = redis.call('HVALS', 'suspects:' .. dead)
  if #slots == 0 then return nil end
  local running = {}
  for _, packed in ipairs(slots) do
    if packed ~= '' then
      local how, ids = unpack(cmsgpack.unpack(packed))
      for _, id in ipairs(ids) do running[id] = how end
    end
  end
  return running
end

-- The jobs of a stream that a dead worker may have died of: {entry id…}. What merely waited between two steps is put back, and charged nothing;
-- what was a suspect before stays one. A worker without a record may have died of anything that it held.
local function suspects(stream, dead)
  local found, running = {}, last_steps(dead)
  for _, pending in ipairs(redis.call('XPENDING', stream, GROUP, '-', '+', MOST_PENDING, dead)) do
    local entry = running and redis.call('XRANGE', stream, pending[1], pending[1])[1]
    local job = entry and fields(entry)
    if job and not running[job.id] and redis.call('EXISTS', 'deaths:' .. job.id) == 0 then
      put_back(stream, pending[1], job.added)
    else
      found[#found + 1] = pending[1]
    end
  end
  return found
end
