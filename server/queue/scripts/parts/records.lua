-- Records: clients' jobs that outlive their gateway. Needs jobs history.
-- `record:<id>` is one job of a client and stands for `count` jobs of the queue, `<id>-0`, `<id>-1`, ….
-- `records:open` holds `<id>:<items>:<bytes>:<reserved bytes of results>` by deadline, `records:kept` `<id>:<bytes>:<state>` by expiry;
-- scenes that can be asked again stand there, too, with the state `scene`.
-- `records:ended` counts those that have ended since this Redis began, by state; `records:items` the items of those that are done, by bundle,
-- until a gateway takes them into its metrics.
-- `records:totals` counts the members of `records:kept` by state, and their bytes: hundreds of thousands may be kept, so nobody reads them all.

local OPEN, KEPT, TOTALS, ENDED = 'records:open', 'records:kept', 'records:totals', 'records:ended'
local RECORD_BYTES = 5500  -- what Redis takes for a record, its key and its events, which begin with a page of 4 KiB; measured with MEMORY USAGE
local MOST_EXPIRED = 1000

-- Everything but the plan, which scripts do not read; nil if there is none.
local FIELDS = {
  'state', 'bundle', 'stream', 'count', 'nbytes', 'bound', 'ttl_ms', 'deadline_ms', 'created_ms', 'started_ms', 'ended', 'results', 'preview', 'idem',
  'reported', 'begun', 'place', 'placed_ms', 'owner', 'work_ms',
}
local function record_at(id)
  local values = redis.call('HMGET', 'record:' .. id, unpack(FIELDS))
  if not values[1] then return nil end
  local record = {}
  for i, name in ipairs(FIELDS) do record[name] = values[i] or nil end
  return record
end

local function is_open(record) return record.state == 'queued' or record.state == 'running' end

local function open_member(id, record)
  return table.concat({id, record.count, record.nbytes, record.bound}, ':')
end

local function count_kept(member, by)
  local bytes, state = string.match(member, '^[^:]+:(%d+):(%a+)$')
  redis.call('HINCRBY', TOTALS, 'bytes', by * bytes)
  redis.call('HINCRBY', TOTALS, state, by)
end

local function keep(id, bytes, state, until_ms)
  local member = table.concat({id, bytes, state}, ':')
  if redis.call('ZADD', KEPT, until_ms, member) == 1 then count_kept(member, 1) end
end

local function keep_no_longer(member)
  if redis.call('ZREM', KEPT, member) == 1 then count_kept(member, -1) end
end

-- Lets go of what has expired, a bounded piece of work, and says what is kept: number of records, totals by name. Counts again if the totals are lost.
local function kept(now)
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEPT, '-inf', now, 'LIMIT', 0, MOST_EXPIRED)) do keep_no_longer(member) end
  local count = redis.call('ZCARD', KEPT)
  if count == 0 then redis.call('DEL', TOTALS) end
  if count > 0 and redis.call('EXISTS', TOTALS) == 0 then
    for _, member in ipairs(redis.call('ZRANGE', KEPT, 0, -1)) do count_kept(member, 1) end
  end
  return count, to_table(redis.call('HGETALL', TOTALS))
end

-- What open records hold: items, bytes. And the bytes of results that are reserved or kept, with their records.
local function held(now)
  local count, totals = kept(now)
  local held_items, held_bytes, results = 0, 0, count * RECORD_BYTES + (totals.bytes or 0)
  for _, member in ipairs(redis.call('ZRANGE', OPEN, 0, -1)) do
    local count, nbytes, bound = string.match(member, '^[^:]+:(%d+):(%d+):(%d+)$')
    held_items, held_bytes, results = held_items + count, held_bytes + nbytes, results + bound + RECORD_BYTES
  end
  return held_items, held_bytes, results
end

-- Adds an event. Its number is the stream id's first half, so that ids are 1-0, 2-0, ….
-- Where others have written under this name the events so far are lost, but not the job, nor the worker that tells of it.
local function tell(id, name, data)
  local number, events = redis.call('HINCRBY', 'record:' .. id, 'events', 1), 'events:' .. id
  if redis.pcall('XADD', events, number .. '-0', 'event', name, 'data', data).err then
    redis.call('DEL', events)
    redis.call('XADD', events, number .. '-0', 'event', name, 'data', data)
  end
  return number
end

local function tell_progress(id, done, total, unit)
  redis.call('HSET', 'record:' .. id, 'done', done, 'total', total, 'unit', unit)
  tell(id, 'progress', cjson.encode({done = done, total = total, unit = unit}))
end

-- A job that reports its steps has taken the last of them when it ends.
local function tell_last_step(id)
  local done, total, unit = unpack(redis.call('HMGET', 'record:' .. id, 'done', 'total', 'unit'))
  if unit and done ~= total then tell_progress(id, tonumber(total), tonumber(total), unit) end
end

local function forget_preview(id, record)
  if record.preview then redis.pcall('XDEL', 'events:' .. id, record.preview .. '-0') end
end

local function start(id, record, started_ms)
  if record.state ~= 'queued' then return end
  redis.call('HSET', 'record:' .. id, 'state', 'running', 'started_ms', string.format('%.0f', started_ms))
  record.state, record.started_ms = 'running', started_ms
end

-- Tells that the work has begun: once, and again where it begins anew after a worker's death. The event holds Unix milliseconds.
local function tell_begun(id, record, started_ms)
  redis.call('HSET', 'record:' .. id, 'begun', '1')
  record.begun = '1'
  tell(id, 'started', string.format('%.0f', started_ms))
end

local function each_job(id, record, visit)
  for i = 0, tonumber(record.count) - 1 do visit(id .. '-' .. i, i) end
end

local function call_off_all(id, record)
  each_job(id, record, function(job_id) call_off(job_id) end)
end

local function drop_results(id, record)
  each_job(id, record, function(job_id) redis.call('DEL', 'result:' .. job_id, 'result:' .. job_id .. ':arrays') end)
end

-- How long a job took, in the history: as a gateway counts requests (server/telemetry/tally.py).
local function note_duration(record, now)
  local bucket = math.max(0, math.ceil(math.log(math.max(now - tonumber(record.created_ms), 1)) / math.log(1.1)))
  note(step_of(now), 'd' .. bucket .. ' ' .. record.bundle, 1)
end

-- The one place where a record ends: `done`, `failed` or `cancelled`. What is left of it stays for its time to live.
local function close(id, record, state, now)
  local key, ttl = 'record:' .. id, tonumber(record.ttl_ms)
  forget_preview(id, record)
  redis.call('HSET', key, 'state', state, 'finished_ms', now)
  redis.call('HINCRBY', ENDED, state, 1)
  if state == 'done' then note_duration(record, now) end
  redis.call('ZREM', OPEN, open_member(id, record))
  if state == 'done' then
    redis.call('HINCRBY', 'records:items', redis.call('HGET', key, 'bundle'), record.count)
  else
    call_off_all(id, record)
    drop_results(id, record)
  end
  local bytes = state == 'done' and redis.call('HGET', key, 'results') or 0
  keep(id, bytes, state, now + ttl)
  each_job(id, record, function(job_id)
    redis.call('PEXPIRE', 'result:' .. job_id, ttl)
    redis.call('PEXPIRE', 'result:' .. job_id .. ':arrays', ttl)
  end)
  redis.call('PEXPIRE', key, ttl)
  redis.call('PEXPIRE', 'events:' .. id, ttl)
  if record.idem then redis.call('PEXPIRE', 'idem:' .. record.idem, ttl) end
  record.state = state
end

local function fail(id, record, kind, detail, index, now)
  redis.call('HSET', 'record:' .. id, 'failure', kind, 'detail', detail, 'index', index)
  tell(id, 'failed', '')
  close(id, record, 'failed', now)
end

local function keep_result(job_id, ending, until_ms, now)
  local ttl, kept = until_ms - now, #ending.reply
  redis.call('SET', 'result:' .. job_id, ending.reply, 'PX', ttl)
  if ending.stored ~= '' then
    kept = kept + redis.call('STRLEN', ending.stored)
    redis.call('RENAME', ending.stored, 'result:' .. job_id .. ':arrays')
    redis.call('PEXPIRE', 'result:' .. job_id .. ':arrays', ttl)
  end
  return kept
end

-- The end of one of a record's jobs (row ended). The first failure ends the record; so does its last result. Without a reply nobody waits
-- any more, or the message was lost: the sweep tells which.
local function settle(id, index, ending, now)
  local record = record_at(id)
  if not record or not is_open(record) or ending.reply == '' then
    if ending.stored ~= '' then redis.call('DEL', ending.stored) end
    return
  end
  start(id, record, now - tonumber(ending.worker_ns) / 1e6)
  if not record.begun and (ending.outcome == 'success' or ending.worker_ns ~= '0') then tell_begun(id, record, record.started_ms) end
  if ending.outcome ~= 'success' then
    fail(id, record, ending.failure, ending.detail, index, now)
    return
  end
  if ending.stored ~= '' and redis.call('EXISTS', ending.stored) == 0 then
    fail(id, record, 'job-lost', 'the result was lost before it was kept', index, now)
    return
  end
  local key = 'record:' .. id
  local kept = keep_result(ending.job, ending, tonumber(record.deadline_ms) + LINGER_MS + tonumber(record.ttl_ms), now)
  redis.call('HSET', key, 'outcome:' .. index, 'done')
  redis.call('HINCRBY', key, 'results', kept)
  local count, ended = tonumber(record.count), redis.call('HINCRBY', key, 'ended', 1)
  if count > 1 or not record.reported then tell_progress(id, ended, count, 'images') else tell_last_step(id) end
  if ended == count then
    tell(id, 'done', '')
    close(id, record, 'done', now)
  end
end
