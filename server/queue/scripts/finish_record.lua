#!lua flags=allow-oom
-- Ends jobs of one bundle that belong to records, and keeps their results. Its ARGV and its answer are those of finish.lua.
local batch, now = read_finished(), now_ms()
check_records(now)
for _, job in ipairs(batch.jobs) do
  record_at((record_of(job.job)))
  expect('STRLEN', job.stored)
end
return end_jobs(batch, now, function(job)
  local record, index = record_of(job.job)
  end_record_job(record, index, job, now)
  if job.stored ~= '' then call('DEL', job.stored) end  -- it was renamed if it is kept
end)
