-- Admission: which requests are admitted, and how their jobs get into the queue.

local WORK_IN_COMMON_MS = 60000  -- while more work is unfinished, a client that shares the queue with others has at most half of it
local NOTHING = {items = 0, nbytes = 0}
local NO_PROMISES = {all = NOTHING, own = NOTHING, low = NOTHING, before = NOTHING}
local function plus(one, other) return {items = one.items + other.items, nbytes = one.nbytes + other.nbytes} end
local function exceeds(usage, bound) return usage.items > bound.items or usage.nbytes > bound.nbytes end

local function refusal_row(reason, wait_ms, held, bound)
  return {reason, math.ceil(wait_ms), held.items, held.nbytes, held.work or 0, bound.items, bound.nbytes}
end

-- The only rule of admission: returns why a Claim is refused, as an Outcome (script.py), or nil, and how much more of it would be admitted.
local function refusal_reason(bounds, all, claim)
  local is_bound = claim.max_items > 0 or claim.promised or all.work > WORK_IN_COMMON_MS or exceeds(plus(all, claim), bounds.low)
  if not is_bound then return nil end  -- no share is smaller than `low`
  local promised, rest = claim.promised or NO_PROMISES, {items = 2 ^ 53, nbytes = 2 ^ 53}
  local whole, more, key = plus(promised.before, claim), plus(promised.all, claim), {items = claim.max_items, nbytes = 2 ^ 53}
  -- Refuses what exceeds a bound. The client should wait until the excess has ended.
  local function check_bound(reason, held, added, bound, wait_ms)
    local items, nbytes = held.items + added.items - bound.items, held.nbytes + added.nbytes - bound.nbytes
    rest = {items = math.min(rest.items, -items), nbytes = math.min(rest.nbytes, -nbytes)}
    if items <= 0 and nbytes <= 0 then return nil end
    local share = math.max(held.items > 0 and items / held.items or 0, held.nbytes > 0 and nbytes / held.nbytes or 0)
    return refusal_row(reason, wait_ms or all.work * math.max(0, math.min(1, share)), held, bound)
  end
  local last = check_bound('long', all, more, bounds.long)
  if last then rest = {items = 2 ^ 53, nbytes = 2 ^ 53} end  -- others may have more
  local function check_share(own)
    local added, in_common = plus(promised.own, claim), all.work > WORK_IN_COMMON_MS and own.work > 0 and all.work > own.work
    local of_last = {items = own.last_items, nbytes = own.last_nbytes}
    return claim.max_items > 0 and check_bound('key', own, added, key)
      or check_bound('client', own, added, bounds.own)
      or in_common and own.work + claim.work_ms > (all.work + claim.work_ms) / 2 and refusal_row('client-work', all.work - WORK_IN_COMMON_MS, own, bounds.own)
      or last and check_bound('client-last', of_last, claim, bounds.own_last, last[2])
  end

  return claim.max_items > 0 and exceeds(whole, key) and refusal_row('key-never', 0, whole, key)
    or check_bound('full', all, more, bounds.all)
    or claim.low and exceeds(whole, bounds.low) and refusal_row('low-never', 0, whole, bounds.low)
    or claim.low and check_bound('low', owner_usage(LOW), plus(promised.low, claim), bounds.low)
    or claim.owner ~= NO_OWNER and check_share(owner_usage(claim.owner))
    or claim.takes_long and last or nil, rest
end

local function all_staged(jobs)
  for _, job in ipairs(jobs) do if job.place == 'stage' and try('STRLEN', 'stage:' .. job.job) ~= job.nbytes then return false end end
  return true
end

local function drop_staged(jobs)
  for _, job in ipairs(jobs) do if job.place == 'stage' then call('DEL', 'stage:' .. job.job) end end
end

-- Raises an error if the jobs could not be added and counted.
local function check_places(jobs)
  local checked
  for _, job in ipairs(jobs) do
    if job.stream ~= checked then expect('XLEN', job.stream) end
    checked = job.stream
    if job.owner ~= NO_OWNER then owner_usage(job.owner) end
    if job.low then owner_usage(LOW) end
  end
end

local noted_streams = {}  -- streams whose names this script has added

-- Adds a job (row enqueued, with its message) to its stream. `last`: whether it was admitted into the last eighth. `job.at`: time at which it was queued first, if not now.
local function add_entry(job, now, last)
  local ttl = job.deadline_ms - now + KEY_GRACE_MS
  local inline = job.place == 'inline' and job.message or ''
  if not noted_streams[job.stream] then noted_streams[job.stream] = call('SADD', 'queues', job.stream) end  -- first: it may raise an error
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
  if call('SADD', JOBS, job.job) == 1 then count_job(job.owner, job.work_ms, job.nbytes, in_last, low, 1) end
end
