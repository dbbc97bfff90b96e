#!lua flags=allow-oom
-- Reports the progress of jobs to their records, or to the gateways that wait for them.
-- A worker that was taken for dead may run a job that another one has claimed: until one of them ends it, only the reports of the other count.
-- ARGV: msgpack of {worker, {row Progress…}}, then a message for each job. Total 0: the job starts.
-- An entry of a reply stream whose first field is `progress` has {job id, message, job id, message, …} after it.
local now, worker, jobs = now_ms(), unpack(cmsgpack.unpack(ARGV[1]))

-- Records the progress of a record with one job. If it has several, the jobs themselves are counted, when they end.
local function record_progress(id, job)
  local record = record_at(id)
  if not record or not is_open(record) then return end
  start_record(id, record, now)
  local begins = job.total == 0
  if not record.begun or (begins and record.count == '1') then add_started_event(id, now) end
  if begins then return end
  if record.count == '1' then
    call('HSET', 'record:' .. id, 'reported', '1')
    add_progress_event(id, job.done, job.total, job.unit)
  end
  if job.preview then
    forget_preview(id, record)  -- only the latest one is kept
    call('HSET', 'record:' .. id, 'preview', add_event(id, 'preview', job.message))
  end
end

for _, job in ipairs(jobs) do if record_of(job.job) then record_at((record_of(job.job))) end end
for i, job in ipairs(jobs) do
  job.message = ARGV[1 + i]
  local record = record_of(job.job)
  if #try('XPENDING', job.stream, GROUP, job.entry, job.entry, 1, worker) == 1 then
    if record then
      record_progress(record, job)
    else
      if not outgoing[job.gateway] then reply(job.gateway, 'progress', '1') end
      reply(job.gateway, job.job, job.message)
    end
  end
end

send_replies()
return redis.status_reply('OK')
