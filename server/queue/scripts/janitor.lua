-- needs: holdings jobs
-- Removes what nobody will come back for; a bounded piece of work per call. The scan over keys goes on where the last call stopped.
-- ARGV: how many keys to look at. Returns 1 when the scan has come to its end, else 0.

local LATE_ENTRIES = 100
local LONGEST_SIGN_MS = 120000
local CURSOR = 'janitor:cursor'
local now = now_ms()

-- Who has died is taken off the list. A sign of life that lasts so long is from before the clock was set back: who lives gives a new one.
local function call_roll(list, prefix)
  for _, id in ipairs(redis.call('SMEMBERS', list)) do
    local ttl = redis.call('PTTL', prefix .. id)
    if ttl == -2 then redis.call('SREM', list, id) end
    if ttl > LONGEST_SIGN_MS then redis.call('PEXPIRE', prefix .. id, LONGEST_SIGN_MS) end
  end
end
call_roll('workers', 'worker:')
call_roll('gateways', 'gw:')

-- Jobs that no worker serves: their gateway has answered 504 long ago.
local function drop_late(stream)
  for _, entry in ipairs(redis.call('XRANGE', stream, '-', '+', 'COUNT', LATE_ENTRIES)) do
    local job = fields(entry)
    if job.deadline + LINGER_MS < now and not remove(stream, entry[1], job.id) then
      redis.call('XDEL', stream, entry[1])
      forget(job.id)
    end
  end
end

-- Forgets consumers that are gone. Returns how many are left.
local function drop_consumers(stream)
  local left = 0
  for _, flat in ipairs(redis.pcall('XINFO', 'CONSUMERS', stream, GROUP)) do
    local consumer = to_table(flat)
    if consumer.pending == 0 and redis.call('EXISTS', 'worker:' .. consumer.name) == 0 then
      redis.call('XGROUP', 'DELCONSUMER', stream, GROUP, consumer.name)
    else
      left = left + 1
    end
  end
  return left
end

for _, stream in ipairs(redis.call('SUNION', 'queues', 'streams')) do
  drop_late(stream)
  if drop_consumers(stream) == 0 and redis.call('XLEN', stream) == 0 then
    redis.call('DEL', stream)
    redis.call('SREM', 'queues', stream)
    redis.call('SREM', 'streams', stream)
  end
end

write_counts()

-- Whether a record still needs what it keeps beside the queue: it queues the job again if Redis lost it.
local function is_kept(job_id)
  local record = record_of(job_id)
  local state = record and redis.call('HGET', 'record:' .. record, 'state')
  return state == 'queued' or state == 'running'
end

local scan = redis.call('SCAN', redis.call('GET', CURSOR) or '0', 'COUNT', ARGV[1])
for _, key in ipairs(scan[2]) do
  local kind, id = string.match(key, '^(%a+):(.*)$')
  if (kind == 'blob' or kind == 'deaths') and redis.call('EXISTS', 'job:' .. id) == 0 and not is_kept(id) then redis.call('DEL', key) end
  if kind == 'events' and redis.call('EXISTS', 'record:' .. id) == 0 then redis.call('DEL', key) end
  if kind == 'idem' then
    local record = redis.pcall('GET', key)
    if type(record) == 'string' and redis.call('EXISTS', 'record:' .. record) == 0 then redis.call('DEL', key) end
  end
  if kind == 'replies' and redis.call('EXISTS', 'gw:' .. id) == 0 and redis.call('TTL', key) < 0 then redis.call('EXPIRE', key, REPLIES_TTL_S) end
end
redis.call('SET', CURSOR, scan[1])
return scan[1] == '0' and 1 or 0
