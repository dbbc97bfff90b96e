-- Records: clients' jobs that outlive their gateway.
-- `record:<id>` is one job of a client and stands for `count` jobs of the queue, `<id>-0`, `<id>-1`, ….
-- `records:open` holds `<id>:<items>:<bytes>:<reserved bytes of results>` by deadline, `records:kept` `<id>:<bytes>:<state>` by expiry, where
-- scenes have the state `scene`. `records:totals` counts its members by state, and their bytes: hundreds of thousands may be kept.

local OPEN, KEPT, TOTALS, ENDED = 'records:open', 'records:kept', 'records:totals', 'records:ended'
local RECORD_BYTES = 5500  -- memory of a record, its key and its events, whose first page has 4 KiB; measured with MEMORY USAGE
local MAX_EXPIRED = 1000
local WEBHOOKS, DROPPED, MAX_WEBHOOKS, WEBHOOK_TTL_MS = 'webhooks', 'webhooks:dropped', 10000, 86400000

-- Returns a record without its plan, which scripts do not read; nil if there is none. `turns`: {stream, ms by which it is behind} of each of
-- several jobs, as msgpack; a single job has the record's stream.
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
  if record.turns then record.turns = decode(record.turns) or unreadable(key .. ' turns', record.turns) end
  return record
end

-- Starts every script that ends records: after it, keeping them does not raise an error.
local function check_records(now)
  expect('ZCARD', OPEN, KEPT, WEBHOOKS)
  expect('HLEN', TOTALS, ENDED, 'records:items', history_at(step_of(now)))
end

local function id_in(member) return string.match(member, '^[^:]*') end
local function is_open(record) return record.state == 'queued' or record.state == 'running' end
local function open_member(id, record) return table.concat({id, record.count, record.nbytes, record.bound}, ':') end

local function count_kept(member, by)
  local bytes, state = string.match(member, '^[^:]+:(%d+):(%a+)$')
  if not state then return end  -- of another program
  increment(TOTALS, 'bytes', by * bytes)
  increment(TOTALS, state, by)
end

local function add_kept(id, bytes, state, until_ms)
  local member = table.concat({id, bytes, state}, ':')
  if call('ZADD', KEPT, until_ms, member) == 1 then count_kept(member, 1) end
end

local function delete_kept(member) if call('ZREM', KEPT, member) == 1 then count_kept(member, -1) end end

-- Removes some of what has expired, and returns the number of kept records and the totals by name. Counts again if the totals were lost.
local function expire_and_count_kept(now)
  for _, member in ipairs(call('ZRANGEBYSCORE', KEPT, '-inf', now, 'LIMIT', 0, MAX_EXPIRED)) do delete_kept(member) end
  local count = call('ZCARD', KEPT)
  local is_known = count > 0 and whole_number(call('HGET', TOTALS, 'bytes'))
  if not is_known then call('DEL', TOTALS) end
  if count > 0 and not is_known then for _, member in ipairs(call('ZRANGE', KEPT, 0, -1)) do count_kept(member, 1) end end
  return count, to_table(call('HGETALL', TOTALS))
end

-- Returns the usage of open records, and the bytes of results that are reserved or kept, with their records.
local function open_usage(now)
  local count, totals = expire_and_count_kept(now)
  local open, results = {items = 0, nbytes = 0}, count * RECORD_BYTES + (totals.bytes or 0)
  for _, member in ipairs(call('ZRANGE', OPEN, 0, -1)) do
    local count, nbytes, bound = string.match(member, '^[^:]+:(%d+):(%d+):(%d+)$')
    if count then open.items, open.nbytes, results = open.items + count, open.nbytes + nbytes, results + bound + RECORD_BYTES end
  end
  return open, results
end

-- Adds an event. Its number is the first half of its stream id: 1-0, 2-0, …. If another program has written the key, earlier events are lost,
-- but the job and the caller go on.
local function add_event(id, name, data)
  local number, events = increment('record:' .. id, 'events', 1), 'events:' .. id
  append(events, number .. '-0', 'event', name, 'data', data)
  return number
end

local function add_progress_event(id, done, total, unit)
  call('HSET', 'record:' .. id, 'done', done, 'total', total, 'unit', unit)
  add_event(id, 'progress', cjson.encode({done = done, total = total, unit = unit}))
end

local function forget_preview(id, record) if record.preview then try('XDEL', 'events:' .. id, record.preview .. '-0') end end

local function start_record(id, record, started_ms)
  if record.state ~= 'queued' then return end
  record.state, record.started_ms = 'running', string.format('%.0f', started_ms)
  call('HSET', 'record:' .. id, 'state', record.state, 'started_ms', record.started_ms)
end

-- Adds the event that the work has started, again if it starts again after a worker's death. The event holds Unix milliseconds.
local function add_started_event(id, started_ms)
  call('HSET', 'record:' .. id, 'begun', '1')
  add_event(id, 'started', string.format('%.0f', started_ms))
end

local function each_job(id, record, visit) for i = 0, tonumber(record.count) - 1 do visit(id .. '-' .. i, i) end end

local function drop_results(id, record)
  each_job(id, record, function(job_id) redis.call('DEL', P .. 'result:' .. job_id, P .. 'result:' .. job_id .. ':arrays') end)
end

-- Keeps a record's end for its webhook, because the record itself may be removed before. The number of waiting ones is bounded.
local function keep_webhook(id, record, state, now)
  if not record.webhook_events or not string.find(record.webhook_events, state, 1, true) then return end
  if call('ZCARD', WEBHOOKS) >= MAX_WEBHOOKS then return try('INCR', DROPPED) end
  redis.call('COPY', P .. 'record:' .. id, P .. 'webhook:' .. id, 'REPLACE')
  call('HDEL', 'webhook:' .. id, 'plan', 'turns')
  call('PEXPIRE', 'webhook:' .. id, WEBHOOK_TTL_MS)
  call('ZADD', WEBHOOKS, now, id)
end

-- The only place where a record ends: `done`, `failed` or `cancelled`. It stays for its time to live.
local function end_record(id, record, state, now)
  local key, ttl = 'record:' .. id, tonumber(record.ttl_ms)
  forget_preview(id, record)
  call('HSET', key, 'state', state, 'finished_ms', now)
  increment(ENDED, state, 1)
  keep_webhook(id, record, state, now)
  call('ZREM', OPEN, open_member(id, record))
  add_kept(id, state == 'done' and record.results or 0, state, now + ttl)
  if state == 'done' then
    -- Its duration is counted in the history as gateways count those of requests (server/telemetry/metrics.py).
    local bucket = math.max(0, math.ceil(math.log(math.max(now - tonumber(record.created_ms), 1)) / math.log(1.1)))
    add_count(step_of(now), 'd' .. bucket .. ' ' .. record.bundle, 1)
    increment('records:items', record.bundle, record.count)
    each_job(id, record, function(job_id)
      call('PEXPIRE', 'result:' .. job_id, ttl)
      call('PEXPIRE', 'result:' .. job_id .. ':arrays', ttl)
    end)
  else
    each_job(id, record, cancel_job)
    drop_results(id, record)
  end
  call('PEXPIRE', key, ttl)
  call('PEXPIRE', 'events:' .. id, ttl)
  if record.idem then call('PEXPIRE', 'idem:' .. record.idem, ttl) end
  record.state = state
end

local function fail_record(id, record, kind, detail, index, now)
  if kind == 'job-lost' then increment(ENDED, 'lost', 1) end
  call('HSET', 'record:' .. id, 'failure', kind, 'detail', detail, 'index', index)
  add_event(id, 'failed', '')
  end_record(id, record, 'failed', now)
end

-- Ends one of a record's jobs (row ended). The first failure ends the record; so does the last result. Without a reply the job was cancelled
-- or its message was lost, which the sweep distinguishes.
local function end_record_job(id, index, ending, now)
  local record = record_at(id)
  if not record or not is_open(record) or ending.reply == '' then return end
  start_record(id, record, now - ending.worker_ns / 1e6)
  if not record.begun and (ending.outcome == 'success' or ending.worker_ns > 0) then add_started_event(id, record.started_ms) end
  if ending.outcome ~= 'success' then return fail_record(id, record, ending.failure, ending.detail, index, now) end
  local key, result = 'record:' .. id, 'result:' .. ending.job
  local ttl, stored = tonumber(record.deadline_ms) + KEY_GRACE_MS + tonumber(record.ttl_ms) - now, 0
  if ending.stored ~= '' then
    stored = call('STRLEN', ending.stored)
    if stored == 0 then return fail_record(id, record, 'job-lost', 'the result was lost before it was kept', index, now) end
    redis.call('RENAME', P .. ending.stored, P .. result .. ':arrays')
    call('PEXPIRE', result .. ':arrays', ttl)
  end
  call('SET', result, ending.reply, 'PX', ttl)
  record.results = increment(key, 'results', #ending.reply + stored)
  local count, ended = tonumber(record.count), increment(key, 'ended', 1)
  if count > 1 or not record.reported then
    add_progress_event(id, math.floor(record.counted * ended / count), tonumber(record.counted), record.counted_unit)
  elseif record.done ~= record.total then  -- a job that reports its steps has taken the last of them
    add_progress_event(id, tonumber(record.total), tonumber(record.total), record.unit)
  end
  if ended == count then
    add_event(id, 'done', '')
    end_record(id, record, 'done', now)
  end
end

-- Marks a queued record as started if a worker has taken one of its jobs, since jobs of one forward pass do not report that.
local function detect_start(id, record, now)
  if record.state ~= 'queued' then return end
  each_job(id, record, function(job_id)
    local pending = holder_of(job_facts(job_id))
    if pending then start_record(id, record, math.max(tonumber(record.created_ms), now - pending[3])) end
  end)
end

-- Returns how many jobs of its stream wait before it, from the counts of entries added and read; nil if Redis does not know them.
local function place_of(record)
  for _, flat in ipairs(redis.pcall('XINFO', 'GROUPS', P .. record.stream)) do
    local group = to_table(flat)
    local read = group.name == GROUP and record.ordinal and group['entries-read']
    if read then return math.max(0, math.min(record.ordinal - 1 - read, call('XLEN', record.stream) - group.pending - 1)) end
  end
end

-- Returns a record for its client: {place in its stream or -1, values of these fields}; nil if there is none.
local function record_row(id, names, now)
  local record = record_at(id)
  if not record then return nil end
  detect_start(id, record, now)
  return {record.state == 'queued' and place_of(record) or -1, call('HMGET', 'record:' .. id, unpack(names))}
end
