-- Who has died. Needs jobs.

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
