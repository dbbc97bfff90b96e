-- What unfinished jobs hold of the queue. `job:<id>` says it behind where the job lies: `<stream> <entry> <owner> <work ms> <bytes> <1 if it was
-- let into the last eighth>`; the owner `-` is nobody. `queue:jobs` names the jobs that are counted, so that each is counted once and let go once.
-- `queue:bytes` and `queue:work` are their sums, `queue:owners` has those of each owner: an owner without jobs has no field there.

local JOBS, OWNERS, NOBODY = 'queue:jobs', 'queue:owners', '-'
local OWNED = {'items', 'bytes', 'work', 'last_items', 'last_bytes'}

local function holding_of(job_id)
  local found = redis.call('GET', 'job:' .. job_id) or ''
  local owner, work, bytes, last = string.match(found, '^%S+ %S+ (%S+) (%d+) (%d+) ([01])$')
  return owner and {owner = owner, work = tonumber(work), bytes = tonumber(bytes), last = last == '1'} or nil
end

local looked_at, more = {}, {['queue:bytes'] = 0, ['queue:work'] = 0}  -- by this script: owners' sums, and what comes to those of all

-- The sums of one owner as this script leaves them, all of them 0 where it holds nothing.
local function owned(owner)
  if looked_at[owner] then return looked_at[owner] end
  local sums, numbers = {}, string.gmatch(redis.call('HGET', OWNERS, owner) or '', '%d+')
  for _, name in ipairs(OWNED) do sums[name] = tonumber(numbers() or '0') end
  looked_at[owner] = sums
  return sums
end

local function set_owned(owner, sums)
  if sums.items <= 0 then
    redis.call('HDEL', OWNERS, owner)
    return
  end
  local numbers = {}
  for i, name in ipairs(OWNED) do numbers[i] = string.format('%d', math.max(0, sums[name])) end
  redis.call('HSET', OWNERS, owner, table.concat(numbers, ' '))
end

local function add_to(sums, holding, by)
  sums.items, sums.bytes, sums.work = sums.items + by, sums.bytes + by * holding.bytes, sums.work + by * holding.work
  if holding.last then sums.last_items, sums.last_bytes = sums.last_items + by, sums.last_bytes + by * holding.bytes end
end

local function count(holding, by)
  more['queue:bytes'], more['queue:work'] = more['queue:bytes'] + by * holding.bytes, more['queue:work'] + by * holding.work
  if holding.owner == NOBODY then return end
  local sums = owned(holding.owner)
  add_to(sums, holding, by)
  sums.changed = true
end

-- The end of every script that queues or ends jobs: it writes once what they come to.
local function write_counts()
  for key, amount in pairs(more) do
    if amount ~= 0 and redis.call('INCRBY', key, string.format('%d', amount)) < 0 then redis.call('SET', key, 0) end
  end
  for owner, sums in pairs(looked_at) do
    if sums.changed then set_owned(owner, sums) end
  end
end

-- What stands in `job:<id>` behind the job's place.
local function told(holding)
  return string.format('%s %d %d %d', holding.owner, holding.work, holding.bytes, holding.last and 1 or 0)
end

local function hold(job_id, holding)
  if redis.call('SADD', JOBS, job_id) == 1 then count(holding, 1) end
end

-- Where `job:<id>` is gone before its job, nobody knows what it held: recount.lua mends that.
local function release(job_id)
  local holding = holding_of(job_id)
  if redis.call('SREM', JOBS, job_id) == 1 and holding then count(holding, -1) end
end
