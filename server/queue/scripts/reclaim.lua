#!lua flags=allow-oom
-- needs: items taking
-- Claims one job that a worker without a worker:<id> key may have died of. It runs alone from then on, and each death that it causes alone is counted.
-- What only waited in a dead worker is put back for everybody.
-- ARGV: the claiming consumer, '1' if an absent gw:<id> means a dead gateway, then work streams.
-- Returns {now ms, row (taken), deaths while alone, the dead worker} or {now ms}.

local me, absence_counts = ARGV[1], ARGV[2] == '1'
local now = now_ms()

local function count_deaths(job_id, dead, deadline)
  local key = 'deaths:' .. job_id
  local count = call('INCRBY', key, last_steps(dead)[job_id] == 'alone' and 1 or 0)
  call('PEXPIRE', key, math.max(1, deadline - now + LINGER_MS))
  return count
end

for i = 3, #ARGV do
  local stream = ARGV[i]
  for _, dead in ipairs(dead_consumers(stream, me)) do
    for _, entry_id in ipairs(suspects(stream, dead)) do
      local entry = call('XCLAIM', stream, GROUP, me, 0, entry_id)[1]
      if entry then
        local job = fields(entry)
        return {now, taken(stream, entry, now, absence_counts), count_deaths(job.id, dead, job.deadline), dead}
      end
      call('XACK', stream, GROUP, entry_id)  -- its entry was deleted by hand
    end
  end
end
return {now}
