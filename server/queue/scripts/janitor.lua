#!lua flags=allow-oom
-- Removes what nobody will come back for; a bounded piece of work per call. The scan over keys goes on where the last call stopped.
-- ARGV: msgpack of {how many keys to look at; then, for the first call of a turn alone, the worker and ms until somebody may have the next turn}.
-- Returns 1 when the scan has come to its end, 0 when it has not, -1 where it is not the worker's turn.
local LATE_ENTRIES = 100
local LONGEST_SIGN_MS = 120000
local CURSOR = 'janitor:cursor'
local count_of_keys, worker, turn_ms = unpack(cmsgpack.unpack(ARGV[1]))
local now, first = now_ms(), worker ~= ''
expect('SCARD', 'workers', 'gateways', 'queues', 'streams', JOBS)
local work_streams, cursor = redis.call('SUNION', P .. 'queues', P .. 'streams'), call('GET', CURSOR) or '0'
expect('XLEN', unpack(work_streams))
if not first then check_counts() end
if first and not take_turn('janitor', worker, turn_ms) then return -1 end

-- Who has died is taken off the list. A sign of life that lasts so long is from before the clock was set back: who lives gives a new one.
local function call_roll(list, prefix)
  for _, id in ipairs(call('SMEMBERS', list)) do
    local ttl = call('PTTL', prefix .. id)
    if ttl == -2 then call('SREM', list, id) end
    if ttl > LONGEST_SIGN_MS then call('PEXPIRE', prefix .. id, LONGEST_SIGN_MS) end
  end
end
if first then  -- counted anew below
  redis.call('DEL', P .. 'queue:bytes', P .. 'queue:work', P .. OWNERS)
  sums = {0, 0}
end
call_roll('workers', 'worker:')
call_roll('gateways', 'gw:')

-- Jobs that no worker serves: their gateway has answered 504 long ago.
local function drop_late(stream)
  for _, entry in ipairs(call('XRANGE', stream, '-', '+', 'COUNT', LATE_ENTRIES)) do
    local job = fields(entry)
    if job.deadline + LINGER_MS < now then remove(stream, entry[1], job.id) end
  end
end

-- Forgets consumers that are gone. Returns how many are left.
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
  drop_late(stream)
  if drop_consumers(stream) == 0 and call('XLEN', stream) == 0 then
    call('DEL', stream)
    call('SREM', 'queues', stream)
    call('SREM', 'streams', stream)
  end
end

-- What unfinished items hold is counted anew: the counts are wrong where Redis, or somebody, has lost items that had not ended.
if first then
  looked_at, more_bytes, more_work = {}, 0, 0
  for _, job_id in ipairs(call('SMEMBERS', JOBS)) do
    local _, _, owner, work, bytes, last, low = known_of(job_id)
    if owner then count(owner, work, bytes, last, low, 1) else call('SREM', JOBS, job_id) end
  end
end
write_counts()

-- Whether a record still needs what it keeps beside the queue: it queues the job again if Redis lost it.
local function is_kept(job_id)
  local record = record_of(job_id)
  local state = record and try('HGET', 'record:' .. record, 'state')
  return state == 'queued' or state == 'running'
end

local scan = redis.call('SCAN', #cursor <= 20 and string.match(cursor, '^%d+$') or '0', 'COUNT', count_of_keys)
for _, full in ipairs(scan[2]) do
  local key = string.sub(full, 1, #P) == P and string.sub(full, #P + 1) or ''  -- all others are somebody else's
  local kind, id = string.match(key, '^(%a+):(.*)$')
  if (kind == 'blob' or kind == 'deaths') and call('EXISTS', 'job:' .. id) == 0 and not is_kept(id) then call('DEL', key) end
  if kind == 'events' and call('EXISTS', 'record:' .. id) == 0 then call('DEL', key) end
  local record = kind == 'idem' and try('GET', key)
  if type(record) == 'string' and call('EXISTS', 'record:' .. record) == 0 then call('DEL', key) end
  if kind == 'replies' and call('EXISTS', 'gw:' .. id) == 0 and call('TTL', key) < 0 then call('EXPIRE', key, REPLIES_TTL_S) end
  if kind == 'suspects' and call('EXISTS', 'worker:' .. id) == 0 and call('TTL', key) < 0 then call('EXPIRE', key, RECORD_TTL_S) end
end
call('SET', CURSOR, scan[1])
return scan[1] == '0' and 1 or 0
