#!lua flags=allow-oom
-- Returns the state of the service, a StatusAnswer (status_reader.py). ARGV: msgpack of {steps of history, max dead letters, max records}.
local now, steps, max_letters, max_records = now_ms(), unpack(cmsgpack.unpack(ARGV[1]))
check_records(now)
local gateways, waiting = 0, 0
for _, id in ipairs(call('SMEMBERS', 'gateways')) do
  local lives = call('EXISTS', 'gw:' .. id)
  gateways, waiting = gateways + lives, waiting + lives * (whole_number(call('HGET', 'gateways:waiting', id)) or 0)
end
local streams = stream_loads()
for _, row in ipairs(streams) do
  row[4] = 0
  local pending = try('XPENDING', row[1], GROUP)  -- a stream may have no group yet
  for _, consumer in ipairs(pending[4] or {}) do
    if call('EXISTS', 'worker:' .. consumer[1]) == 1 then row[4] = row[4] + tonumber(consumer[2]) end
  end
end

local members = call('ZRANGE', OPEN, 0, -1)
for _, member in ipairs(members) do record_at(id_in(member)) end
local sent = call('XREVRANGE', 'dead', '+', '-', 'COUNT', max_letters) or {}  -- false if none is requested
count_batches(call('LLEN', 'stats:batches'))
local history = {}
for step = step_of(now) - steps, step_of(now) - 1 do
  local counts = try('HGETALL', history_at(step))
  history[#history + 1] = counts.err and {} or counts
end
local letters = {}
for _, entry in ipairs(sent) do
  local letter = to_table(entry[2])
  letters[#letters + 1] = {entry[1], letter.stream or '', letter.reason or ''}
end
local open, ongoing = {queued = 0, running = 0}, {}
for _, member in ipairs(members) do
  local id = id_in(member)
  local record = record_at(id)
  if record and is_open(record) then
    detect_start(id, record, now)
    open[record.state] = open[record.state] + 1
    ongoing[#ongoing + 1] = call('HMGET', 'record:' .. id, 'task', 'bundle', 'state', 'created_ms', 'started_ms', 'done', 'total', 'unit')
  end
end
table.sort(ongoing, function(a, b) return tonumber(a[4]) < tonumber(b[4]) end)
local memory = redis.pcall('INFO', 'memory')
local oldest = {unpack(ongoing, 1, math.min(#ongoing, max_records))}
return {
  now, gateways, streams, history, letters, open.queued, open.running, expire_and_count_kept(now), call('HGETALL', TOTALS), call('HGETALL', ENDED), oldest,
  memory.err and '' or memory, waiting}
