#!lua flags=allow-oom
-- Tells how far jobs have come: their records, or the gateways that wait for them.
-- A worker that was taken for dead may run a job that another one has claimed: until one of them ends it, only the other's reports count.
-- ARGV: msgpack of {worker, {row Progress…}}, then a message for each job; total 0: it begins.
-- An entry of a reply stream that starts with the field `progress` holds {job id, message, job id, message, …} behind it.
local now, worker, jobs = now_ms(), unpack(cmsgpack.unpack(ARGV[1]))

-- Where a record has several jobs, it is they that are counted, when they end.
local function note(id, job)
  local record = record_at(id)
  if not record or not is_open(record) then return end
  start(id, record, now)
  local begins = job.total == 0
  if not record.begun or (begins and record.count == '1') then tell_begun(id, now) end
  if begins then return end
  if record.count == '1' then
    call('HSET', 'record:' .. id, 'reported', '1')
    tell_progress(id, job.done, job.total, job.unit)
  end
  if job.preview then
    forget_preview(id, record)  -- only the latest one is kept
    call('HSET', 'record:' .. id, 'preview', tell(id, 'preview', job.message))
  end
end

for _, job in ipairs(jobs) do if record_of(job.job) then record_at((record_of(job.job))) end end
for i, job in ipairs(jobs) do
  job.message = ARGV[1 + i]
  local record = record_of(job.job)
  if #try('XPENDING', job.stream, GROUP, job.entry, job.entry, 1, worker) == 1 then
    if record then
      note(record, job)
    else
      if not outgoing[job.gateway] then reply(job.gateway, 'progress', '1') end
      reply(job.gateway, job.job, job.message)
    end
  end
end

send_replies()
return redis.status_reply('OK')
