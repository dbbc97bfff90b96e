#!lua flags=allow-oom
-- Ends records whose deadline has passed, even without any worker, and queues jobs of records that Redis has lost again. A record fails if the
-- message of such a job is lost, too.
local MAX_ENDED = 100
local now, ended = now_ms(), 0

-- Queues jobs that Redis has lost again, from the messages that records keep.
local function requeue_lost(id, record)
  local turns = record.turns or {}
  each_job(id, record, function(job_id, i)
    local has_ended = not is_open(record) or call('EXISTS', 'result:' .. job_id) == 1
    if has_ended or call('EXISTS', 'job:' .. job_id) == 1 then return end
    local nbytes = try('STRLEN', 'blob:' .. job_id)
    if type(nbytes) == 'table' or nbytes == 0 then return fail_record(id, record, 'job-lost', 'Redis lost what the job needs', i, now) end
    local stream, behind_ms = unpack(turns[i + 1] or {record.stream, 0})
    local job = {
      job = job_id, stream = stream, gateway = '', deadline_ms = tonumber(record.deadline_ms), place = 'kept', nbytes = nbytes,
      owner = record.owner, work_ms = tonumber(record.work_ms), behind_ms = behind_ms, at = record.created_ms,
      low = record.priority == 'low',
    }
    add_entry(job, now, false)
  end)
end

check_counts()
expect('SCARD', 'queues')
check_records(now)
local members, streams = call('ZRANGE', OPEN, 0, -1), {}
for _, member in ipairs(members) do
  local record = record_at(id_in(member))
  if record then streams[record.stream] = true end
  for _, turn in ipairs(record and record.turns or {}) do streams[turn[1]] = true end
end
for stream in pairs(streams) do expect('XLEN', stream) end
for _, member in ipairs(members) do
  local id = id_in(member)
  local record = record_at(id)
  if not record or not is_open(record) then
    call('ZREM', OPEN, member)
  elseif tonumber(record.deadline_ms) > now then
    requeue_lost(id, record)
  elseif ended < MAX_ENDED then
    fail_record(id, record, 'deadline', 'the deadline passed; the work was cancelled', '', now)
    ended = ended + 1
  end
end
write_counts()
expire_and_count_kept(now)
return redis.status_reply('OK')
