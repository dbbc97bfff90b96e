#!lua flags=allow-oom
-- Removes abandoned keys and entries, a bounded number per call. The scan over keys continues where the last call stopped.
-- ARGV: msgpack of {number of keys to check; then, only for the first call of a turn, the worker and ms until the next turn of any worker}.
-- Returns 1 once the scan has reached its end, 0 before, -1 if it is not the worker's turn.
local MAX_EXPIRED_ENTRIES = 100
local MAX_SIGN_MS = 120000
local CURSOR = 'janitor:cursor'
local count_of_keys, worker, turn_ms = unpack(cmsgpack.unpack(ARGV[1]))
local now, first = now_ms(), worker ~= ''
expect('SCARD', 'workers', 'gateways', 'queues', 'streams', JOBS)
local work_streams, cursor = redis.call('SUNION', P .. 'queues', P .. 'streams'), call('GET', CURSOR) or '0'
expect('XLEN', unpack(work_streams))
expect('HLEN', 'gateways:waiting')
if not first then check_counts() end
if first and not take_turn('janitor', worker, turn_ms) then return -1 end

-- Removes dead processes from a list. A longer time to live than MAX_SIGN_MS was set before the clock was set back; live processes set it again.
local function remove_dead(list, prefix)
  for _, id in ipairs(call('SMEMBERS', list)) do
    local ttl = call('PTTL', prefix .. id)
    if ttl == -2 then call('SREM', list, id) end
    if ttl > MAX_SIGN_MS then call('PEXPIRE', prefix .. id, MAX_SIGN_MS) end
  end
end
if first then  -- counted again below
  redis.call('DEL', P .. 'queue:bytes', P .. 'queue:work', P .. OWNERS)
  sums = {0, 0}
end
remove_dead('workers', 'worker:')
remove_dead('gateways', 'gw:')
for _, id in ipairs(call('HKEYS', 'gateways:waiting')) do
  if call('EXISTS', 'gw:' .. id) == 0 then call('HDEL', 'gateways:waiting', id) end
end

-- Removes jobs that no worker serves, to which their gateways have answered 504 long ago.
local function drop_expired(stream)
  for _, entry in ipairs(call('XRANGE', stream, '-', '+', 'COUNT', MAX_EXPIRED_ENTRIES)) do
    local job = fields(entry)
    if job.deadline + KEY_GRACE_MS < now then remove(stream, entry[1], job.id) end
  end
end

-- Removes consumers that are dead, and returns how many are left.
local function drop_consumers(stream)
  local left = 0
  for _, flat in ipairs(redis.pcall('XINFO', 'CONSUMERS', P .. stream, GROUP)) do
    local consumer = to_table(flat)
    if consumer.pending == 0 and call('EXISTS', 'worker:' .. consumer.name) == 0 then
      redis.call('XGROUP', 'DELCONSUMER', P .. stream, GROUP, consumer.name)
    else
      left = left + 1
    end
  end
  return left
end

for _, stream in ipairs(work_streams) do
  drop_expired(stream)
  if drop_consumers(stream) == 0 and call('XLEN', stream) == 0 then
    call('DEL', stream)
    call('SREM', 'queues', stream)
    call('SREM', 'streams', stream)
  end
end

-- The usage of unfinished jobs is counted again, since it is wrong if Redis has lost jobs that had not ended, or another program deleted them.
if first then
  usage_cache, more_bytes, more_work = {}, 0, 0
  for _, job_id in ipairs(call('SMEMBERS', JOBS)) do
    local _, _, owner, work, bytes, last, low = job_facts(job_id)
    if owner then count_job(owner, work, bytes, last, low, 1) else call('SREM', JOBS, job_id) end
  end
end
write_counts()

-- Returns whether a record needs the job's message, to queue the job again if Redis loses it.
local function is_needed_by_record(job_id)
  local record = record_of(job_id)
  local state = record and try('HGET', 'record:' .. record, 'state')
  return state == 'queued' or state == 'running'
end

local scan = redis.call('SCAN', #cursor <= 20 and string.match(cursor, '^%d+$') or '0', 'COUNT', count_of_keys)
for _, full in ipairs(scan[2]) do
  local key = string.sub(full, 1, #P) == P and string.sub(full, #P + 1) or ''  -- others belong to other programs
  local kind, id = string.match(key, '^(%a+):(.*)$')
  if (kind == 'blob' or kind == 'deaths') and call('EXISTS', 'job:' .. id) == 0 and not is_needed_by_record(id) then call('DEL', key) end
  if kind == 'events' and call('EXISTS', 'record:' .. id) == 0 then call('DEL', key) end
  local record = kind == 'idem' and try('GET', key)
  if type(record) == 'string' and call('EXISTS', 'record:' .. record) == 0 then call('DEL', key) end
  if kind == 'replies' and call('EXISTS', 'gw:' .. id) == 0 and call('TTL', key) < 0 then call('EXPIRE', key, REPLIES_TTL_S) end
  if kind == 'suspects' and call('EXISTS', 'worker:' .. id) == 0 and call('TTL', key) < 0 then call('EXPIRE', key, RECORD_TTL_S) end
end
call('SET', CURSOR, scan[1])
return scan[1] == '0' and 1 or 0
