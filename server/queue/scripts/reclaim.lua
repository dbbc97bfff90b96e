-- needs: jobs dead taking
-- Claims one job of a worker that has no worker:<id> key, for a worker in which nothing else runs until this job has ended: `deaths:<id>` says that
-- it runs alone and where, so that its worker's death tells something about it.
-- KEYS: work streams. ARGV: the claiming consumer, '1' if an absent gw:<id> means a dead gateway.
-- Returns {now ms, row (taken), deaths while alone, the dead worker} or {now ms}.

local me, absence_counts = ARGV[1], ARGV[2] == '1'
local now = now_ms()

local function count_deaths(job_id, dead, deadline)
  local key = 'deaths:' .. job_id
  if redis.call('HGET', key, 'alone') == dead then redis.call('HINCRBY', key, 'count', 1) end
  redis.call('HSET', key, 'alone', me)
  redis.call('PEXPIRE', key, math.max(1, deadline - now + LINGER_MS))
  return tonumber(redis.call('HGET', key, 'count') or '0')
end

for _, stream in ipairs(KEYS) do
  for _, dead in ipairs(dead_consumers(stream, me)) do
    for _, pending in ipairs(redis.call('XPENDING', stream, GROUP, '-', '+', 16, dead)) do
      local entry = redis.call('XCLAIM', stream, GROUP, me, 0, pending[1])[1]
      if entry then
        local job = fields(entry)
        return {now, taken(stream, entry, now, absence_counts), count_deaths(job.id, dead, job.deadline), dead}
      end
      redis.call('XACK', stream, GROUP, pending[1])  -- its entry was deleted by hand
    end
  end
end
return {now}
