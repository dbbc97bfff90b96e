#!lua flags=allow-oom
-- needs: items admission history records
-- Looks after clients' jobs that nobody else would end: those whose deadline has passed fail, even without any worker; those whose jobs the
-- queue has lost are queued again, or fail if their messages are lost too. Returns how many it touched.

local MOST = 100
local now = now_ms()
local touched = 0
local _, known = unfinished()

-- Queues a lost job again from the message that is kept beside the queue. False if that is lost.
local function queue_again(id, record, job_id, index)
  local nbytes = call('STRLEN', 'blob:' .. job_id)
  if nbytes == 0 then return false end
  local job = {
    job = job_id, stream = record.stream, gateway = '', deadline_ms = tonumber(record.deadline_ms), place = 'kept', nbytes = nbytes,
    owner = record.owner or NOBODY, work_ms = tonumber(record.work_ms or '0'), message = '',
  }
  call('HSET', 'record:' .. id, 'entry:' .. index, put(job, now, known, false))
  return true
end

local function mend(id, record)
  each_job(id, record, function(job_id, i)
    if not is_open(record) or call('EXISTS', 'job:' .. job_id) == 1 then return end
    if call('HGET', 'record:' .. id, 'outcome:' .. i) then return end
    touched = touched + 1
    if not queue_again(id, record, job_id, i) then fail(id, record, 'job-lost', 'Redis lost what the job needs', i, now) end
  end)
end

for _, member in ipairs(call('ZRANGEBYSCORE', OPEN, '-inf', now, 'LIMIT', 0, MOST)) do
  local id = string.match(member, '^[^:]+')
  local record = record_at(id)
  if record and is_open(record) then fail(id, record, 'deadline', 'the deadline passed; the work was cancelled', '', now) end
  call('ZREM', OPEN, member)
  touched = touched + 1
end
for _, member in ipairs(call('ZRANGE', OPEN, 0, -1)) do
  local id = string.match(member, '^[^:]+')
  local record = record_at(id)
  if record and is_open(record) then mend(id, record) else call('ZREM', OPEN, member) end
end
write_counts()
kept(now)
return touched
