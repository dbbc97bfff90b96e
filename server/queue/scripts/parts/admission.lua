-- Who is let into the queue, and how jobs get there.

local WORK_IN_COMMON_MS = 60000  -- while more is unfinished, whoever has some of it and is not alone has at most half

-- What the jobs of one request (rows enqueued) would hold.
local function asked_by(jobs)
  local asked = {items = #jobs, nbytes = 0, work = 0}
  for _, job in ipairs(jobs) do
    asked.owner, asked.long, asked.low, asked.max_items = job.owner, job.takes_long, job.low, job.max_items
    asked.nbytes, asked.work = asked.nbytes + job.nbytes, asked.work + job.work_ms
  end
  return asked
end

local function exceeds(held, asked, bound) return held.items + asked.items > bound.items or held.nbytes + asked.nbytes > bound.nbytes end

-- Why they are not let in (bounds: row bounds): 'client', its owner has its share; 'key', as many as its API key may have; 'full'; nil: they are.
local function refusal(bounds, all, asked)
  if exceeds(all, asked, bounds.all) or asked.low and exceeds(owned(LOW), asked, bounds.low) then return 'full' end
  local last = exceeds(all, asked, bounds.long)
  if asked.owner ~= NOBODY then
    local own = owned(asked.owner)
    if asked.max_items and own.items + asked.items > asked.max_items then return 'key' end
    if exceeds(own, asked, bounds.own) then return 'client' end
    local in_common = all.work > WORK_IN_COMMON_MS and own.work > 0 and all.work > own.work
    if in_common and own.work + asked.work > (all.work + asked.work) / 2 then return 'client' end
    if last and exceeds({items = own.last_items, nbytes = own.last_nbytes}, asked, bounds.own_last) then return 'client' end
  end
  return last and asked.long and 'full' or nil
end

-- Whether every message that should have been staged is there.
local function all_staged(jobs)
  for _, job in ipairs(jobs) do if job.place == 'stage' and try('STRLEN', 'stage:' .. job.job) ~= job.nbytes then return false end end
  return true
end

-- Removes what was staged and not taken over.
local function drop_staged(jobs)
  for _, job in ipairs(jobs) do if job.place == 'stage' then call('DEL', 'stage:' .. job.job) end end
end

-- Raises an error where jobs could not be put and counted.
local function check_places(jobs)
  local checked
  for _, job in ipairs(jobs) do
    if job.stream ~= checked then expect('XLEN', job.stream) end
    checked = job.stream
    if job.owner ~= NOBODY then owned(job.owner) end
    if job.low then owned(LOW) end
  end
end

local named = {}  -- streams that this script has noted

-- Adds a job (row enqueued, with its message) to its stream; `last`: it was let into the last eighth. `at`: when it was queued first, if not now.
local function put(job, now, last)
  local ttl = job.deadline_ms - now + LINGER_MS
  local inline = job.place == 'inline' and job.message or ''
  if not named[job.stream] then named[job.stream] = call('SADD', 'queues', job.stream) end  -- first: it may raise an error
  if job.place == 'blob' then call('SET', 'blob:' .. job.job, job.message, 'PX', ttl) end
  if job.place == 'stage' then
    redis.call('RENAME', P .. 'stage:' .. job.job, P .. 'blob:' .. job.job)
    call('PEXPIRE', 'blob:' .. job.job, ttl)
  end
  local entry = {'id', job.job, 'gw', job.gateway, 'until', job.deadline_ms, 'bytes', job.nbytes, 'job', inline, 'at', job.at or now}
  if job.behind_ms > 0 then entry[#entry + 1], entry[#entry + 2] = 'behind', job.behind_ms end
  local entry_id = call('XADD', job.stream, '*', unpack(entry))
  local in_last, low = last and '1' or '0', job.low and '1' or ''
  call('SET', 'job:' .. job.job, table.concat({job.stream, entry_id, job.owner, job.work_ms, job.nbytes, in_last .. low}, ' '), 'PX', ttl)
  if call('SADD', JOBS, job.job) == 1 then count(job.owner, job.work_ms, job.nbytes, in_last, low, 1) end
end
