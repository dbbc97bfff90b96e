-- How jobs get into the queue. Needs holdings jobs.

-- How many jobs are unfinished, and the streams that are known to have held any.
local function unfinished()
  local items, known = 0, {}
  for _, stream in ipairs(redis.call('SMEMBERS', 'queues')) do
    known[stream] = true
    items = items + redis.call('XLEN', stream)
  end
  return items, known
end

-- Entries of a stream that no worker has taken yet.
local function waiting_in(stream)
  local pending = redis.pcall('XPENDING', stream, GROUP)
  return math.max(0, redis.call('XLEN', stream) - (pending.err and 0 or pending[1]))
end

-- The jobs (rows enqueued) that are not in the queue yet. A message that was staged for a job that is there is dropped.
local function not_queued(jobs)
  local new = {}
  for _, job in ipairs(jobs) do
    if redis.call('EXISTS', 'job:' .. job.job) == 0 then
      new[#new + 1] = job
    elseif job.place == 'stage' then
      redis.call('DEL', 'stage:' .. job.job)
    end
  end
  return new
end

-- Whether every message that should have been staged is there.
local function all_staged(jobs)
  for _, job in ipairs(jobs) do
    if job.place == 'stage' and redis.call('STRLEN', 'stage:' .. job.job) ~= tonumber(job.nbytes) then return false end
  end
  return true
end

local function drop_staged(jobs)
  for _, job in ipairs(jobs) do
    if job.place == 'stage' then redis.call('DEL', 'stage:' .. job.job) end
  end
end

-- Adds a job (row enqueued) to its stream; `last`: it was let into the last eighth. Returns the entry's id.
local function put(job, now, known, last)
  local ttl = tonumber(job.deadline_ms) - now + LINGER_MS
  local inline = job.place == 'inline' and job.message or ''
  if job.place == 'blob' then redis.call('SET', 'blob:' .. job.job, job.message, 'PX', ttl) end
  if job.place == 'stage' then
    redis.call('RENAME', 'stage:' .. job.job, 'blob:' .. job.job)
    redis.call('PEXPIRE', 'blob:' .. job.job, ttl)
  end
  if not known[job.stream] then
    redis.call('SADD', 'queues', job.stream)
    known[job.stream] = true
  end
  local entry_id = redis.call(
    'XADD', job.stream, '*', 'id', job.job, 'gw', job.gateway, 'until', job.deadline_ms, 'bytes', job.nbytes, 'job', inline, 'at', now)
  local holding = {owner = job.owner, work = tonumber(job.work_ms), bytes = tonumber(job.nbytes), last = last}
  redis.call('SET', 'job:' .. job.job, table.concat({job.stream, entry_id, told(holding)}, ' '), 'PX', ttl)
  hold(job.job, holding)
  return entry_id
end
