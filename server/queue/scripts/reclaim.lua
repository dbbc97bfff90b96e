-- needs: jobs back dead taking
-- Claims one job that a worker without a worker:<id> key may have died of. It runs alone from then on, and each death that it causes alone is counted.
-- A claiming worker that records what it runs tells by that when it runs alone. Of another one `deaths:<id>` says so from the claim on: nothing
-- else runs in it until this job has ended.
-- KEYS: work streams. ARGV: the claiming consumer, '1' if an absent gw:<id> means a dead gateway, '1' if the claiming worker records what it runs.
-- Returns {now ms, row (taken), deaths while alone, the dead worker} or {now ms}.

local me, absence_counts, records = ARGV[1], ARGV[2] == '1', ARGV[3] == '1'
local now = now_ms()

local function count_deaths(job_id, dead, deadline)
  local key, running = 'deaths:' .. job_id, last_steps(dead) or {}
  if running[job_id] == 'alone' or redis.call('HGET', key, 'alone') == dead then redis.call('HINCRBY', key, 'count', 1) end
  redis.call('HSET', key, 'alone', records and '' or me)
  redis.call('PEXPIRE', key, math.max(1, deadline - now + LINGER_MS))
  return tonumber(redis.call('HGET', key, 'count') or '0')
end

for _, stream in ipairs(KEYS) do
  for _, dead in ipairs(dead_consumers(stream, me)) do
    for _, entry_id in ipairs(suspects(stream, dead)) do
      local entry = redis.call('XCLAIM', stream, GROUP, me, 0, entry_id)[1]
      if entry then
        local job = fields(entry)
        return {now, taken(stream, entry, now, absence_counts), count_deaths(job.id, dead, job.deadline), dead}
      end
      redis.call('XACK', stream, GROUP, entry_id)  -- its entry was deleted by hand
    end
  end
end
return {now}
