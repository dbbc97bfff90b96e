-- needs: holdings
-- Counts what unfinished jobs hold anew. The counts are wrong where Redis, or somebody, has lost jobs that had not ended. Returns how many jobs there are.

local bytes, work, owners, jobs = 0, 0, {}, 0
for _, job_id in ipairs(redis.call('SMEMBERS', JOBS)) do
  local holding = holding_of(job_id)
  if holding then
    jobs, bytes, work = jobs + 1, bytes + holding.bytes, work + holding.work
    local sums = owners[holding.owner] or {items = 0, bytes = 0, work = 0, last_items = 0, last_bytes = 0}
    owners[holding.owner] = sums
    add_to(sums, holding, 1)
  else
    redis.call('SREM', JOBS, job_id)
  end
end
redis.call('SET', 'queue:bytes', string.format('%d', bytes))
redis.call('SET', 'queue:work', string.format('%d', work))
redis.call('DEL', OWNERS)
owners[NOBODY] = nil
for owner, sums in pairs(owners) do set_owned(owner, sums) end
return jobs
