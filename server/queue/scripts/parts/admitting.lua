-- The one place that lets jobs into the queue, or says why not. Needs holdings.

local WORK_IN_COMMON_MS = 60000  -- while more is unfinished, whoever has some of it and is not alone has at most half

-- What the queue holds: unfinished jobs, their bytes and their work.
local function all_held(items)
  return {items = items, bytes = tonumber(redis.call('GET', 'queue:bytes') or '0'), work = tonumber(redis.call('GET', 'queue:work') or '0')}
end

-- What the jobs of one request (rows enqueued) would hold.
local function asked_by(jobs)
  local asked = {items = #jobs, bytes = 0, work = 0}
  for _, job in ipairs(jobs) do
    asked.owner, asked.long = job.owner, job.takes_long == '1'
    asked.bytes, asked.work = asked.bytes + tonumber(job.nbytes), asked.work + tonumber(job.work_ms)
  end
  return asked
end

local function exceeds(items, bytes, most_items, most_bytes) return items > tonumber(most_items) or bytes > tonumber(most_bytes) end

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
