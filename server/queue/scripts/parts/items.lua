-- The items of the queue: stream entries, the keys of their jobs, and the capacity that unfinished jobs use.
-- `job:<id>`: `<stream> <entry> <owner or -> <work ms> <bytes> <1 if it was admitted into the last eighth><1 if it has priority low>`.
-- `queue:jobs` has the ids of the jobs that are counted, so that each is counted once and released once. `queue:bytes` and `queue:work` are their
-- sums; `queue:owners` has the sums of each owner that has jobs and, as `low`, those of all jobs of that priority.

local JOBS, OWNERS, NO_OWNER, LOW = 'queue:jobs', 'queue:owners', '-', 'low'
local SUMS = {'queue:bytes', 'queue:work'}
local sums  -- bytes and work of all unfinished jobs before this script

-- Reads the sums, and other keys by their full names. MGET returns nothing for a key of another type.
local function read_sums(...)
  sums = redis.call('MGET', P .. SUMS[1], P .. SUMS[2], ...)
  for i, name in ipairs(SUMS) do sums[i] = whole_number(sums[i] or call('GET', name) or '0') or unreadable(name, sums[i]) end
end

-- Returns a job's stream and the id of its entry there, owner, work, bytes, '1' or '0', and '1' or ''; nothing if the job is unknown.
-- `text`: the value of `job:<id>`, if it was read.
local function job_facts(job_id, text)
  if text == nil then text = try('GET', 'job:' .. job_id) end
  return string.match(type(text) == 'string' and text or '', '^(%S+) (%S+) (%S+) (%d+) (%d+) ([01])([01]?)$')
end

local usage_cache, more_bytes, more_work = {}, 0, 0  -- owners' sums with the changes of this script, and its changes to the sums of all

-- Returns the sums of an owner with the changes of this script; 0 if it has no jobs.
local function owner_usage(owner)
  if usage_cache[owner] then return usage_cache[owner] end
  local items, nbytes, work, last_items, last_nbytes = string.match(call('HGET', OWNERS, owner) or '0 0 0 0 0', '^(%d+) (%d+) (%d+) (%d+) (%d+)$')
  usage_cache[owner] = {
    items = tonumber(items) or 0, nbytes = tonumber(nbytes) or 0, work = tonumber(work) or 0,
    last_items = tonumber(last_items) or 0, last_nbytes = tonumber(last_nbytes) or 0,
  }
  return usage_cache[owner]
end

local function add_to(owner, work, bytes, last, by)
  local sums = owner_usage(owner)
  sums.items, sums.nbytes, sums.work = sums.items + by, sums.nbytes + by * bytes, sums.work + by * work
  if last == '1' then sums.last_items, sums.last_nbytes = sums.last_items + by, sums.last_nbytes + by * bytes end
end

-- Counts a job. `by`: 1 if it is added, -1 if it ends. `last`: '1' if it was admitted into the last eighth. `low`: '1' if it has that priority.
local function count_job(owner, work, bytes, last, low, by)
  more_bytes, more_work = more_bytes + by * bytes, more_work + by * work
  if owner ~= NO_OWNER then add_to(owner, work, bytes, last, by) end
  if low == '1' then add_to(LOW, work, bytes, last, by) end
end

-- Starts every script that queues or ends jobs: after it, counting them does not raise an error.
local function check_counts(...)
  expect('SCARD', JOBS)
  expect('HLEN', OWNERS)
  read_sums(...)
end

-- Returns the usage of all unfinished jobs.
local function total_usage()
  read_sums()
  expect('HLEN', OWNERS)
  return {items = call('SCARD', JOBS), nbytes = sums[1], work = sums[2]}
end

-- Ends every script that queues or ends jobs: writes the sums once.
local function write_counts()
  local max, format = math.max, string.format
  if more_bytes ~= 0 or more_work ~= 0 then
    local bytes, work = format('%d', max(0, sums[1] + more_bytes)), format('%d', max(0, sums[2] + more_work))
    redis.call('MSET', P .. SUMS[1], bytes, P .. SUMS[2], work)
  end
  for owner, usage in pairs(usage_cache) do
    if usage.items > 0 then
      local nbytes, work, last_items, last_nbytes = max(0, usage.nbytes), max(0, usage.work), max(0, usage.last_items), max(0, usage.last_nbytes)
      call('HSET', OWNERS, owner, format('%d %d %d %d %d', usage.items, nbytes, work, last_items, last_nbytes))
    else
      call('HDEL', OWNERS, owner)
    end
  end
end

-- Returns the fields of a stream entry. An entry of another program reads as a job that has expired, and is removed.
-- `added` is the time at which the job was queued first, which the id of an entry says only if another program wrote it.
local function fields(entry)
  local job = to_table(entry[2])
  return {
    id = job.id or '', gw = job.gw or '', deadline = whole_number(job['until']) or 0, bytes = whole_number(job.bytes) or 0,
    message = job.job or '', added = whole_number(job.at) or tonumber(string.match(entry[1], '^(%d+)')), behind = whole_number(job.behind) or 0,
  }
end

-- Returns the record that a job belongs to, and its index there; nil for a job for which a gateway waits.
local function record_of(job_id) return string.match(job_id, '^(%x+%-%x+)%-(%d+)$') end

-- The only place where a job's usage is released and its keys are deleted. If `job:<id>` was lost, its usage is unknown, and the janitor corrects the sums.
local function release_job(job_id, text)
  local _, _, owner, work, bytes, last, low = job_facts(job_id, text)
  if call('SREM', JOBS, job_id) == 1 and owner then count_job(owner, work, bytes, last, low, -1) end
  redis.call('DEL', P .. 'job:' .. job_id, P .. 'blob:' .. job_id, P .. 'deaths:' .. job_id, P .. 'cancel:' .. job_id)
end

-- Removes an entry from its stream, whichever worker holds it, with all keys of its job.
local function remove(stream, entry_id, job_id)
  try('XACK', stream, GROUP, entry_id)
  try('XDEL', stream, entry_id)
  release_job(job_id)
end

-- Returns the pending entry {id, consumer, ms since it was taken, …} of a job if a live worker holds it.
local function holder_of(stream, entry_id)
  local pending = stream and try('XPENDING', stream, GROUP, entry_id, entry_id, 1)
  local taken_entry = pending and not pending.err and pending[1]
  return taken_entry and call('EXISTS', 'worker:' .. taken_entry[2]) == 1 and taken_entry or nil
end

-- Removes a job from the queue or, if a live worker has it, asks that worker to drop it. Does nothing if it has ended.
local function cancel_job(job_id)
  local stream, entry_id = job_facts(job_id)
  if not stream then return end
  if holder_of(stream, entry_id) then
    call('SET', 'cancel:' .. job_id, '1', 'PX', call('PTTL', 'job:' .. job_id))
  else
    remove(stream, entry_id, job_id)
  end
end

local function back_of(stream) return string.gsub(stream, ':back$', '') .. ':back' end

-- Moves an entry that a consumer holds to the `…:back` stream of its stream, which wakes a waiting worker.
local function requeue(stream, entry_id)
  local entry = call('XRANGE', stream, entry_id, entry_id)[1]
  call('XACK', stream, GROUP, entry_id)
  if not entry then return end
  call('XDEL', stream, entry_id)
  local back = back_of(stream)
  local id, lies_at = fields(entry).id, back .. ' ' .. call('XADD', back, '*', unpack(entry[2]))
  local known = try('GET', 'job:' .. id)
  if type(known) == 'string' then call('SET', 'job:' .. id, string.gsub(known, '^%S+ %S+', lies_at), 'KEEPTTL') end
  call('SADD', 'queues', back)
end

-- Returns the number of entries of a stream that no worker has taken yet.
local function waiting_in(stream)
  local pending = try('XPENDING', stream, GROUP)
  return math.max(0, call('XLEN', stream) - (pending.err and 0 or pending[1]))
end

-- Returns {stream, number of its unfinished jobs, time at which the oldest was queued or 0} for each stream that has had jobs.
local function stream_loads()
  local rows = {}
  for _, stream in ipairs(call('SMEMBERS', 'queues')) do
    local oldest = call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
    rows[#rows + 1] = {stream, call('XLEN', stream), oldest and fields(oldest).added or 0}
  end
  return rows
end

local outgoing = {}  -- gateway → entry that this script adds to its stream: {job id, reply, job id, reply, …}, or progress (progress.lua)

local function reply(gateway, job_id, message)
  local entry = outgoing[gateway] or {}
  outgoing[gateway] = entry
  entry[#entry + 1] = job_id
  entry[#entry + 1] = message
end

-- Adds an entry to a stream. If another program has written its key, earlier entries are lost.
local function append(stream, ...)
  if type(try('XADD', stream, ...)) ~= 'table' then return end
  call('DEL', stream)
  call('XADD', stream, ...)
end

-- Ends every script that replies: sends the replies to live gateways.
local function send_replies()
  for gateway, entry in pairs(outgoing) do
    if call('EXISTS', 'gw:' .. gateway) == 1 then append('replies:' .. gateway, '*', unpack(entry)) end
  end
end
