-- The items of the queue: stream entries, the keys beside them, and what unfinished jobs hold of its room.
-- `job:<id>`: `<stream> <entry> <owner or -> <work ms> <bytes> <1 if it was let into the last eighth><1 if its client asked for priority low>`.
-- `queue:jobs` names the jobs that are counted, so that each is counted once and released once. `queue:bytes` and `queue:work` are their sums,
-- `queue:owners` has those of each owner that has jobs and, as `low`, those of all jobs of that priority.

local JOBS, OWNERS, NOBODY, LOW = 'queue:jobs', 'queue:owners', '-', 'low'
local SUMS = {'queue:bytes', 'queue:work'}
local sums  -- as noted before this script: bytes and work of all unfinished jobs

-- Reads these, and other keys that are named in full. MGET reads a key of another type as none.
local function read_sums(...)
  sums = redis.call('MGET', P .. SUMS[1], P .. SUMS[2], ...)
  for i, name in ipairs(SUMS) do sums[i] = whole(sums[i] or call('GET', name) or '0') or unreadable(name, sums[i]) end
end

-- What is known of a job: its stream and the id of its entry there, owner, work, bytes, '1' or '0', and '1' or ''; nothing if it is not known.
-- `text`: what `job:<id>` holds, if that was read.
local function known_of(job_id, text)
  if text == nil then text = try('GET', 'job:' .. job_id) end
  return string.match(type(text) == 'string' and text or '', '^(%S+) (%S+) (%S+) (%d+) (%d+) ([01])([01]?)$')
end

local looked_at, more_bytes, more_work = {}, 0, 0  -- by this script: owners' sums, and what comes to those of all

-- The sums of one owner as this script leaves them, all of them 0 where it holds nothing.
local function owned(owner)
  if looked_at[owner] then return looked_at[owner] end
  local items, nbytes, work, last_items, last_nbytes = string.match(call('HGET', OWNERS, owner) or '0 0 0 0 0', '^(%d+) (%d+) (%d+) (%d+) (%d+)$')
  looked_at[owner] = {
    items = tonumber(items) or 0, nbytes = tonumber(nbytes) or 0, work = tonumber(work) or 0,
    last_items = tonumber(last_items) or 0, last_nbytes = tonumber(last_nbytes) or 0,
  }
  return looked_at[owner]
end

local function add_to(owner, work, bytes, last, by)
  local sums = owned(owner)
  sums.items, sums.nbytes, sums.work = sums.items + by, sums.nbytes + by * bytes, sums.work + by * work
  if last == '1' then sums.last_items, sums.last_nbytes = sums.last_items + by, sums.last_nbytes + by * bytes end
end

-- `by`: 1 for a job that comes, -1 for one that goes. `last`: '1' if it was let into the last eighth; `low`: if its client asked for that priority.
local function count(owner, work, bytes, last, low, by)
  more_bytes, more_work = more_bytes + by * bytes, more_work + by * work
  if owner ~= NOBODY then add_to(owner, work, bytes, last, by) end
  if low == '1' then add_to(LOW, work, bytes, last, by) end
end

-- The start of every script that queues or ends jobs: counting them will not raise an error.
local function check_counts(...)
  expect('SCARD', JOBS)
  expect('HLEN', OWNERS)
  read_sums(...)
end

-- What all unfinished jobs hold.
local function all_held()
  read_sums()
  expect('HLEN', OWNERS)
  return {items = call('SCARD', JOBS), nbytes = sums[1], work = sums[2]}
end

-- The end of every script that queues or ends jobs: it writes once what they come to.
local function write_counts()
  local max, format = math.max, string.format
  if more_bytes ~= 0 or more_work ~= 0 then
    local bytes, work = format('%d', max(0, sums[1] + more_bytes)), format('%d', max(0, sums[2] + more_work))
    redis.call('MSET', P .. SUMS[1], bytes, P .. SUMS[2], work)
  end
  for owner, held in pairs(looked_at) do
    if held.items > 0 then
      local nbytes, work, last_items, last_nbytes = max(0, held.nbytes), max(0, held.work), max(0, held.last_items), max(0, held.last_nbytes)
      call('HSET', OWNERS, owner, format('%d %d %d %d %d', held.items, nbytes, work, last_items, last_nbytes))
    else
      call('HDEL', OWNERS, owner)
    end
  end
end

-- The fields of a stream entry. One that is not ours reads as a job that came too late, and goes.
-- `added` is when the job was queued first; the id of an entry tells it only where somebody else wrote it.
local function fields(entry)
  local job = to_table(entry[2])
  return {
    id = job.id or '', gw = job.gw or '', deadline = whole(job['until']) or 0, bytes = whole(job.bytes) or 0,
    message = job.job or '', added = whole(job.at) or tonumber(string.match(entry[1], '^(%d+)')), behind = whole(job.behind) or 0,
  }
end

-- The record that a job belongs to, and its index there; nil for a job that answers a gateway.
local function record_of(job_id) return string.match(job_id, '^(%x+%-%x+)%-(%d+)$') end

-- The one place where a job lets go of what it holds. Where `job:<id>` is gone before its job, nobody knows what it held: the janitor mends that.
local function forget(job_id, text)
  local _, _, owner, work, bytes, last, low = known_of(job_id, text)
  if call('SREM', JOBS, job_id) == 1 and owner then count(owner, work, bytes, last, low, -1) end
  redis.call('DEL', P .. 'job:' .. job_id, P .. 'blob:' .. job_id, P .. 'deaths:' .. job_id, P .. 'cancel:' .. job_id)
end

-- Takes an entry out of its stream, whoever holds it, with all that belongs to its job.
local function remove(stream, entry_id, job_id)
  try('XACK', stream, GROUP, entry_id)
  try('XDEL', stream, entry_id)
  forget(job_id)
end

-- The pending entry {id, consumer, ms for which it has been held, …} of a job that a living worker holds.
local function holder_of(stream, entry_id)
  local pending = stream and try('XPENDING', stream, GROUP, entry_id, entry_id, 1)
  local held = pending and not pending.err and pending[1]
  return held and call('EXISTS', 'worker:' .. held[2]) == 1 and held or nil
end

-- Takes a job that nobody waits for out of the queue, unless a living worker has it: that one is told. Does nothing if it has ended.
local function call_off(job_id)
  local stream, entry_id = known_of(job_id)
  if not stream then return end
  if holder_of(stream, entry_id) then
    call('SET', 'cancel:' .. job_id, '1', 'PX', call('PTTL', 'job:' .. job_id))
  else
    remove(stream, entry_id, job_id)
  end
end

local function back_of(stream) return string.gsub(stream, ':back$', '') .. ':back' end

-- Moves an entry that a consumer holds to the `…:back` stream of its own, which wakes a waiting worker.
local function put_back(stream, entry_id)
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

-- Entries of a stream that no worker has taken yet.
local function waiting_in(stream)
  local pending = try('XPENDING', stream, GROUP)
  return math.max(0, call('XLEN', stream) - (pending.err and 0 or pending[1]))
end

-- For each stream that has held jobs {stream, its unfinished jobs, when the oldest of them was queued or 0}.
local function stream_loads()
  local rows = {}
  for _, stream in ipairs(call('SMEMBERS', 'queues')) do
    local oldest = call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
    rows[#rows + 1] = {stream, call('XLEN', stream), oldest and fields(oldest).added or 0}
  end
  return rows
end

local outgoing = {}  -- gateway → the entry of its stream that this script adds: {job id, reply, job id, reply, …}, or progress (progress.lua)

local function reply(gateway, job_id, message)
  local entry = outgoing[gateway] or {}
  outgoing[gateway] = entry
  entry[#entry + 1] = job_id
  entry[#entry + 1] = message
end

-- Adds an entry to a stream. Where others have written under its name, earlier ones are lost.
local function append(stream, ...)
  if type(try('XADD', stream, ...)) ~= 'table' then return end
  call('DEL', stream)
  call('XADD', stream, ...)
end

-- The end of every script that replies: living gateways are told.
local function send_replies()
  for gateway, entry in pairs(outgoing) do
    if call('EXISTS', 'gw:' .. gateway) == 1 then append('replies:' .. gateway, '*', unpack(entry)) end
  end
end
