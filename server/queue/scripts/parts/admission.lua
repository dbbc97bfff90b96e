-- Who is let into the queue, and how items get there. Needs items.

local WORK_IN_COMMON_MS = 60000  -- while more is unfinished, whoever has some of it and is not alone has at most half

-- What the queue holds: unfinished jobs, their bytes and their work.
local function all_held(items)
  return {items = items, bytes = tonumber(call('GET', 'queue:bytes') or '0'), work = tonumber(call('GET', 'queue:work') or '0')}
end

-- What the jobs of one request (rows enqueued) would hold.
local function asked_by(jobs)
  local asked = {items = #jobs, bytes = 0, work = 0}
  for _, job in ipairs(jobs) do
    asked.owner, asked.long = job.owner, job.takes_long
    asked.bytes, asked.work = asked.bytes + job.nbytes, asked.work + job.work_ms
  end
  return asked
end

local function exceeds(items, bytes, most_items, most_bytes) return items > most_items or bytes > most_bytes end

-- Whether jobs would lie in the last eighth of the queue.
local function in_last_eighth(bounds, all, asked)
  return exceeds(all.items + asked.items, all.bytes + asked.bytes, bounds.long_items, bounds.long_nbytes)
end

-- Why they are not let in (bounds: row bounds): 'client', its owner has its share; 'full'; nil: they are.
local function refusal(bounds, all, asked)
  if exceeds(all.items + asked.items, all.bytes + asked.bytes, bounds.items, bounds.nbytes) then return 'full' end
  local last = in_last_eighth(bounds, all, asked)
  if asked.owner ~= NOBODY then
    local own = owned(asked.owner)
    if exceeds(own.items + asked.items, own.bytes + asked.bytes, bounds.own_items, bounds.own_nbytes) then return 'client' end
    local in_common = all.work > WORK_IN_COMMON_MS and own.work > 0 and all.work > own.work
    if in_common and own.work + asked.work > (all.work + asked.work) / 2 then return 'client' end
    local last_items, last_bytes = own.last_items + asked.items, own.last_bytes + asked.bytes
    if last and exceeds(last_items, last_bytes, bounds.own_last_items, bounds.own_last_nbytes) then return 'client' end
  end
  return last and asked.long and 'full' or nil
end

-- Gives jobs (rows enqueued) that are not staged their messages: the arguments from here on. Returns where those of the next jobs begin.
local function with_messages(jobs, at)
  for _, job in ipairs(jobs) do
    if job.place ~= 'stage' then job.message, at = ARGV[at], at + 1 end
  end
  return at
end

-- How many jobs are unfinished, and the streams that are known to have held any.
local function unfinished()
  local items, known = 0, {}
  for _, stream in ipairs(call('SMEMBERS', 'queues')) do
    known[stream] = true
    items = items + call('XLEN', stream)
  end
  return items, known
end

-- The jobs (rows enqueued) that are not in the queue yet. A message that was staged for a job that is there is dropped.
local function not_queued(jobs)
  local new = {}
  for _, job in ipairs(jobs) do
    if call('EXISTS', 'job:' .. job.job) == 0 then
      new[#new + 1] = job
    elseif job.place == 'stage' then
      call('DEL', 'stage:' .. job.job)
    end
  end
  return new
end

-- Whether every message that should have been staged is there.
local function all_staged(jobs)
  for _, job in ipairs(jobs) do
    if job.place == 'stage' and call('STRLEN', 'stage:' .. job.job) ~= job.nbytes then return false end
  end
  return true
end

local function drop_staged(jobs)
  for _, job in ipairs(jobs) do
    if job.place == 'stage' then call('DEL', 'stage:' .. job.job) end
  end
end

-- Adds a job (row enqueued) to its stream; `last`: it was let into the last eighth. Returns the entry's id.
local function put(job, now, known, last)
  local ttl = job.deadline_ms - now + LINGER_MS
  local inline = job.place == 'inline' and job.message or ''
  if job.place == 'blob' then call('SET', 'blob:' .. job.job, job.message, 'PX', ttl) end
  if job.place == 'stage' then
    redis.call('RENAME', P .. 'stage:' .. job.job, P .. 'blob:' .. job.job)
    call('PEXPIRE', 'blob:' .. job.job, ttl)
  end
  if not known[job.stream] then
    call('SADD', 'queues', job.stream)
    known[job.stream] = true
  end
  local entry_id = call(
    'XADD', job.stream, '*', 'id', job.job, 'gw', job.gateway, 'until', job.deadline_ms, 'bytes', job.nbytes, 'job', inline, 'at', now)
  local mark = last and '1' or '0'
  call('SET', 'job:' .. job.job, table.concat({job.stream, entry_id, job.owner, job.work_ms, job.nbytes, mark}, ' '), 'PX', ttl)
  if call('SADD', JOBS, job.job) == 1 then count(job.owner, job.work_ms, job.nbytes, mark, 1) end
  return entry_id
end
