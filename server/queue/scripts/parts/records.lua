-- Records: clients' jobs that outlive their gateway.
-- `record:<id>` is one job of a client and stands for `count` jobs of the queue, `<id>-0`, `<id>-1`, ….
-- `records:open` holds `<id>:<items>:<bytes>:<reserved bytes of results>` by deadline, `records:kept` `<id>:<bytes>:<state>` by expiry, where
-- scenes have the state `scene`. `records:totals` counts its members by state, and their bytes: hundreds of thousands may be kept.

local OPEN, KEPT, TOTALS, ENDED = 'records:open', 'records:kept', 'records:totals', 'records:ended'
local RECORD_BYTES = 5500  -- what Redis takes for a record, its key and its events, which begin with a page of 4 KiB; measured with MEMORY USAGE
local MOST_EXPIRED = 1000
local WEBHOOKS, DROPPED, MOST_WEBHOOKS, WEBHOOK_TTL_MS = 'webhooks', 'webhooks:dropped', 10000, 86400000

-- Everything but the plan, which scripts do not read; nil if there is none. `turns`: msgpack of {stream, by how many ms it is behind} for each
-- of several jobs; one alone has the record's stream.
local function record_at(id)
  local FIELDS = {
    'ttl_ms', 'deadline_ms', 'created_ms', 'count',  -- numbers that every record has
    'nbytes', 'bound', 'started_ms', 'results', 'preview', 'done', 'total', 'ordinal', 'placed_ms', 'counted', 'work_ms',  -- other numbers
    'state', 'bundle', 'stream', 'idem', 'reported', 'begun', 'unit', 'place', 'owner', 'counted_unit', 'turns', 'priority', 'webhook_events',
  }
  local ALWAYS, NUMBERS, STATE = 4, 15, 16
  local key, record = 'record:' .. id, {}
  local values = call('HMGET', key, unpack(FIELDS))
  if not values[STATE] then return nil end
  for i, name in ipairs(FIELDS) do
    local value = values[i] or nil
    if i <= NUMBERS and (value or i <= ALWAYS) and not tonumber(value or '') then unreadable(key .. ' ' .. name, value) end
    record[name] = value
  end
  if record.turns then record.turns = decoded(record.turns) or unreadable(key .. ' turns', record.turns) end
  return record
end

-- The start of every script that ends records: keeping them will not raise an error.
local function check_records(now)
  expect('ZCARD', OPEN, KEPT, WEBHOOKS)
  expect('HLEN', TOTALS, ENDED, 'records:items', history_at(step_of(now)))
end

local function id_in(member) return string.match(member, '^[^:]*') end
local function is_open(record) return record.state == 'queued' or record.state == 'running' end
local function open_member(id, record) return table.concat({id, record.count, record.nbytes, record.bound}, ':') end

local function count_kept(member, by)
  local bytes, state = string.match(member, '^[^:]+:(%d+):(%a+)$')
  if not state then return end  -- somebody else's
  add(TOTALS, 'bytes', by * bytes)
  add(TOTALS, state, by)
end

local function keep(id, bytes, state, until_ms)
  local member = table.concat({id, bytes, state}, ':')
  if call('ZADD', KEPT, until_ms, member) == 1 then count_kept(member, 1) end
end

local function keep_no_longer(member) if call('ZREM', KEPT, member) == 1 then count_kept(member, -1) end end

-- Lets go of what has expired, a bounded piece of work, and says what is kept: number of records, totals by name. Counts again if the totals are lost.
local function kept(now)
  for _, member in ipairs(call('ZRANGEBYSCORE', KEPT, '-inf', now, 'LIMIT', 0, MOST_EXPIRED)) do keep_no_longer(member) end
  local count = call('ZCARD', KEPT)
  local is_known = count > 0 and whole(call('HGET', TOTALS, 'bytes'))
  if not is_known then call('DEL', TOTALS) end
  if count > 0 and not is_known then for _, member in ipairs(call('ZRANGE', KEPT, 0, -1)) do count_kept(member, 1) end end
  return count, to_table(call('HGETALL', TOTALS))
end

-- What open records hold. And the bytes of results that are reserved or kept, with their records.
local function held(now)
  local count, totals = kept(now)
  local open, results = {items = 0, nbytes = 0}, count * RECORD_BYTES + (totals.bytes or 0)
  for _, member in ipairs(call('ZRANGE', OPEN, 0, -1)) do
    local count, nbytes, bound = string.match(member, '^[^:]+:(%d+):(%d+):(%d+)$')
    if count then open.items, open.nbytes, results = open.items + count, open.nbytes + nbytes, results + bound + RECORD_BYTES end
  end
  return open, results
end

-- Adds an event. Its number is the stream id's first half, so that ids are 1-0, 2-0, ….
-- Where others have written under this name the events so far are lost, but not the job, nor the worker that tells of it.
local function tell(id, name, data)
  local number, events = add('record:' .. id, 'events', 1), 'events:' .. id
  append(events, number .. '-0', 'event', name, 'data', data)
  return number
end

local function tell_progress(id, done, total, unit)
  call('HSET', 'record:' .. id, 'done', done, 'total', total, 'unit', unit)
  tell(id, 'progress', cjson.encode({done = done, total = total, unit = unit}))
end

local function forget_preview(id, record) if record.preview then try('XDEL', 'events:' .. id, record.preview .. '-0') end end

local function start(id, record, started_ms)
  if record.state ~= 'queued' then return end
  record.state, record.started_ms = 'running', string.format('%.0f', started_ms)
  call('HSET', 'record:' .. id, 'state', record.state, 'started_ms', record.started_ms)
end

-- Tells that the work has begun: once, and again where it begins anew after a worker's death. The event holds Unix milliseconds.
local function tell_begun(id, started_ms)
  call('HSET', 'record:' .. id, 'begun', '1')
  tell(id, 'started', string.format('%.0f', started_ms))
end

local function each_job(id, record, visit) for i = 0, tonumber(record.count) - 1 do visit(id .. '-' .. i, i) end end

local function drop_results(id, record)
  each_job(id, record, function(job_id) redis.call('DEL', P .. 'result:' .. job_id, P .. 'result:' .. job_id .. ':arrays') end)
end

-- Keeps what is to be told of a record's end: the record itself may be removed before. What waits to be told is bounded.
local function keep_webhook(id, record, state, now)
  if not record.webhook_events or not string.find(record.webhook_events, state, 1, true) then return end
  if call('ZCARD', WEBHOOKS) >= MOST_WEBHOOKS then return try('INCR', DROPPED) end
  redis.call('COPY', P .. 'record:' .. id, P .. 'webhook:' .. id, 'REPLACE')
  call('HDEL', 'webhook:' .. id, 'plan', 'turns')
  call('PEXPIRE', 'webhook:' .. id, WEBHOOK_TTL_MS)
  call('ZADD', WEBHOOKS, now, id)
end

-- The one place where a record ends: `done`, `failed` or `cancelled`. What is left of it stays for its time to live.
local function close(id, record, state, now)
  local key, ttl = 'record:' .. id, tonumber(record.ttl_ms)
  forget_preview(id, record)
  call('HSET', key, 'state', state, 'finished_ms', now)
  add(ENDED, state, 1)
  keep_webhook(id, record, state, now)
  call('ZREM', OPEN, open_member(id, record))
  keep(id, state == 'done' and record.results or 0, state, now + ttl)
  if state == 'done' then
    -- How long it took, in the history: as a gateway counts requests (server/telemetry/metrics.py).
    local bucket = math.max(0, math.ceil(math.log(math.max(now - tonumber(record.created_ms), 1)) / math.log(1.1)))
    note(step_of(now), 'd' .. bucket .. ' ' .. record.bundle, 1)
    add('records:items', record.bundle, record.count)
    each_job(id, record, function(job_id)
      call('PEXPIRE', 'result:' .. job_id, ttl)
      call('PEXPIRE', 'result:' .. job_id .. ':arrays', ttl)
    end)
  else
    each_job(id, record, call_off)
    drop_results(id, record)
  end
  call('PEXPIRE', key, ttl)
  call('PEXPIRE', 'events:' .. id, ttl)
  if record.idem then call('PEXPIRE', 'idem:' .. record.idem, ttl) end
  record.state = state
end

local function fail(id, record, kind, detail, index, now)
  call('HSET', 'record:' .. id, 'failure', kind, 'detail', detail, 'index', index)
  tell(id, 'failed', '')
  close(id, record, 'failed', now)
end

-- The end of one of a record's jobs (row ended). The first failure ends the record; so does its last result. Without a reply nobody waits
-- any more, or the message was lost: the sweep tells which.
local function settle(id, index, ending, now)
  local record = record_at(id)
  if not record or not is_open(record) or ending.reply == '' then return end
  start(id, record, now - ending.worker_ns / 1e6)
  if not record.begun and (ending.outcome == 'success' or ending.worker_ns > 0) then tell_begun(id, record.started_ms) end
  if ending.outcome ~= 'success' then return fail(id, record, ending.failure, ending.detail, index, now) end
  local key, result = 'record:' .. id, 'result:' .. ending.job
  local ttl, stored = tonumber(record.deadline_ms) + LINGER_MS + tonumber(record.ttl_ms) - now, 0
  if ending.stored ~= '' then
    stored = call('STRLEN', ending.stored)
    if stored == 0 then return fail(id, record, 'job-lost', 'the result was lost before it was kept', index, now) end
    redis.call('RENAME', P .. ending.stored, P .. result .. ':arrays')
    call('PEXPIRE', result .. ':arrays', ttl)
  end
  call('SET', result, ending.reply, 'PX', ttl)
  record.results = add(key, 'results', #ending.reply + stored)
  local count, ended = tonumber(record.count), add(key, 'ended', 1)
  if count > 1 or not record.reported then
    tell_progress(id, math.floor(record.counted * ended / count), tonumber(record.counted), record.counted_unit)
  elseif record.done ~= record.total then  -- a job that reports its steps has taken the last of them
    tell_progress(id, tonumber(record.total), tonumber(record.total), record.unit)
  end
  if ended == count then
    tell(id, 'done', '')
    close(id, record, 'done', now)
  end
end

-- Notices that a worker has taken one of a queued record's jobs: nobody writes that down where a job is one forward pass.
local function notice_start(id, record, now)
  if record.state ~= 'queued' then return end
  each_job(id, record, function(job_id)
    local pending = holder_of(known_of(job_id))
    if pending then start(id, record, math.max(tonumber(record.created_ms), now - pending[3])) end
  end)
end

-- How many of its stream wait before it, from the counts of entries that were added and read; nil where Redis does not know.
local function place_of(record)
  for _, flat in ipairs(redis.pcall('XINFO', 'GROUPS', P .. record.stream)) do
    local group = to_table(flat)
    local read = group.name == GROUP and record.ordinal and group['entries-read']
    if read then return math.max(0, math.min(record.ordinal - 1 - read, call('XLEN', record.stream) - group.pending - 1)) end
  end
end

-- A record as its client sees it: {place in its stream or -1, values of these fields}; nil if there is none.
local function shown(id, names, now)
  local record = record_at(id)
  if not record then return nil end
  notice_start(id, record, now)
  return {record.state == 'queued' and place_of(record) or -1, call('HMGET', 'record:' .. id, unpack(names))}
end
