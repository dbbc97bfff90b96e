-- needs: jobs
-- Puts a worker's jobs back for another one, without a death being counted.
-- A job that runs in batches goes to the `…:back` stream of its own, which wakes a waiting worker, with the time at which it was queued first.
-- A job that must run alone stays in its stream under a consumer that never lives, so that it is claimed, alone again.
-- ARGV: consumer, then a row (handed_back) for each job. Returns how many were put back.

local me, count = ARGV[1], 0
local at = 2
while at <= #ARGV do
  local job
  job, at = read_handed_back(ARGV, at)
  if #redis.call('XPENDING', job.stream, GROUP, job.entry, job.entry, 1, me) == 1 then
    if job.alone == '1' then
      redis.call('XCLAIM', job.stream, GROUP, HANDED_BACK, 0, job.entry, 'JUSTID')
    else
      local entry = redis.call('XRANGE', job.stream, job.entry, job.entry)[1]
      redis.call('XACK', job.stream, GROUP, job.entry)
      if entry then
        local again, back = to_table(entry[2]), string.gsub(job.stream, ':back$', '') .. ':back'
        again.at = job.added_ms
        local flat = {}
        for name, value in pairs(again) do
          flat[#flat + 1] = name
          flat[#flat + 1] = value
        end
        redis.call('XDEL', job.stream, job.entry)
        redis.call('XADD', back, '*', unpack(flat))
        redis.call('SADD', 'queues', back)
      end
    end
    count = count + 1
  end
end
return count
