-- Stands before every script, after ROWS (see rows.py). One Redis holds all keys of a shard, so scripts may compute key names; the clock is always Redis'.

local GROUP = 'workers'
local HANDED_BACK = 'handed-back'
local LINGER_MS = 60000  -- how long a job's keys outlive its deadline
local REPLIES_TTL_S = 60

local function now_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- Named values as a row for Python.
local function row(kind, values)
  local list = {}
  for i, name in ipairs(ROWS[kind]) do list[i] = values[name] end
  return list
end

-- The row of this kind at a position of `list`, with names; and the position behind it.
local function record(kind, list, at)
  local values = {}
  for i, name in ipairs(ROWS[kind]) do values[name] = list[at + i - 1] end
  return values, at + #ROWS[kind]
end

-- All rows of one kind from a position of `list` to its end.
local function rows(kind, list, at)
  local found = {}
  while at <= #list do found[#found + 1], at = record(kind, list, at) end
  return found
end

-- Flat {name, value, name, value} → table.
local function to_table(flat)
  local table = {}
  for i = 1, #flat, 2 do table[flat[i]] = flat[i + 1] end
  return table
end

-- The fields of a stream entry. One that is not ours reads as a job that came too late, and goes.
-- `added` is when the job was queued: the entry's id tells, or, where a worker has put it back, its field `at`.
local function fields(entry)
  local job = to_table(entry[2])
  return {
    id = job.id or '', gw = job.gw or '', deadline = tonumber(job['until']) or 0, bytes = tonumber(job.bytes) or 0,
    message = job.job or '', added = tonumber(job.at or string.match(entry[1], '^(%d+)')),
  }
end

local function spend_bytes(amount)
  if redis.call('INCRBY', 'queue:bytes', -amount) < 0 then redis.call('SET', 'queue:bytes', 0) end
end

local function forget(job_id)
  redis.call('DEL', 'job:' .. job_id, 'blob:' .. job_id, 'deaths:' .. job_id, 'cancel:' .. job_id)
end

-- Takes an entry out of its stream with all that belongs to its job. False if another had done so before.
local function remove(stream, entry_id, job_id, bytes)
  if redis.call('XACK', stream, GROUP, entry_id) == 0 then return false end
  redis.call('XDEL', stream, entry_id)
  forget(job_id)
  spend_bytes(bytes)
  return true
end

-- The message of a job, which lies beside the stream if it is large; '' if it is lost.
local function message_of(job)
  if job.message ~= '' then return job.message end
  return redis.call('GET', 'blob:' .. job.id) or ''
end

-- Why a job that was just taken should not run, or ''.
local function verdict(job, now, absence_counts)
  if job.deadline <= now then return 'deadline' end
  if redis.call('EXISTS', 'cancel:' .. job.id) == 1 then return 'cancelled' end
  if absence_counts and redis.call('EXISTS', 'gw:' .. job.gw) == 0 then return 'gateway' end
  return ''
end

-- A taken entry as the worker reads it, and whether it is to run.
local function taken(stream, entry, now, absence_counts)
  local job = fields(entry)
  local dropped, message = verdict(job, now, absence_counts), ''
  if dropped == '' then
    message = message_of(job)
    if message == '' then dropped = 'payload' end
  end
  return row('taken', {
    stream = stream, entry = entry[1], job = job.id, gateway = job.gw, nbytes = job.bytes, added_ms = job.added,
    dropped = dropped, message = message,
  }), dropped == ''
end

-- Lets workers read a work stream. Does nothing if they can.
local function make_group(stream)
  local made = redis.pcall('XGROUP', 'CREATE', stream, GROUP, 0, 'MKSTREAM')
  if made.err and not string.find(made.err, 'BUSYGROUP', 1, true) then error(made.err) end
  redis.call('SADD', 'streams', stream)
end

-- Consumers of a stream that have entries in their hands and no worker:<id> key: {name…}.
local function dead_consumers(stream, me)
  local names = {}
  local consumers = redis.pcall('XINFO', 'CONSUMERS', stream, GROUP)
  for _, flat in ipairs(consumers) do
    local consumer = to_table(flat)
    if consumer.name ~= me and consumer.pending > 0 and redis.call('EXISTS', 'worker:' .. consumer.name) == 0 then
      names[#names + 1] = consumer.name
    end
  end
  return names
end

-- Unfinished jobs: total, bytes, and a row for each stream.
local function load()
  local items, streams = 0, {}
  for _, stream in ipairs(redis.call('SMEMBERS', 'queues')) do
    local length, oldest = redis.call('XLEN', stream), 0
    if length > 0 then oldest = fields(redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]).added end
    items = items + length
    streams[#streams + 1] = row('stream_load', {stream = stream, length = length, oldest_ms = oldest})
  end
  return items, tonumber(redis.call('GET', 'queue:bytes') or '0'), streams
end

-- Statistics of one batch, as finish.lua wrote them down, added to the sums of their bundle.
local function count_batch(batch, sums)
  local bundle, batch_size, ended_ms, jobs = unpack(batch)
  local of_bundle = sums[bundle] or {last = 0}
  sums[bundle] = of_bundle
  local function add(name, amount) of_bundle[name] = (of_bundle[name] or 0) + amount end
  local function add_duration(name, ns)
    add(name .. '_count', 1)
    add(name .. '_ns', math.max(0, ns))
  end

  local answered, slowest_inference, slowest_output = 0, 0, 0
  for _, job in ipairs(jobs) do
    local outcome, total, batch_wait, inference, in_worker = unpack(job)
    add_duration(outcome, total)
    if outcome == 'success' then
      local output = in_worker - batch_wait - inference
      answered = answered + 1
      add('inference_count', 1)
      add_duration('queue', total - in_worker + batch_wait)
      add_duration('compute_input', 0)
      add_duration('compute_infer', inference)
      add_duration('compute_output', output)
      slowest_inference, slowest_output = math.max(slowest_inference, inference), math.max(slowest_output, output)
    end
  end
  if answered > 0 and batch_size > 0 then
    add('execution_count', 1)
    add('batch:' .. batch_size .. ':count', 1)
    add('batch:' .. batch_size .. ':compute_input_ns', 0)
    add('batch:' .. batch_size .. ':compute_infer_ns', slowest_inference)
    add('batch:' .. batch_size .. ':compute_output_ns', slowest_output)
    of_bundle.last = math.max(of_bundle.last, ended_ms)
  end
end

-- Adds up the statistics of at most so many batches that have not been counted yet.
local function count_batches(most)
  local batches = redis.call('LRANGE', 'stats:uncounted', 0, most - 1)
  if #batches == 0 then return end
  redis.call('LTRIM', 'stats:uncounted', #batches, -1)
  local sums = {}
  for _, packed in ipairs(batches) do count_batch(cmsgpack.unpack(packed), sums) end
  for bundle, of_bundle in pairs(sums) do
    local key, last = 'stats:' .. bundle, of_bundle.last
    of_bundle.last = nil
    if last > 0 then redis.call('HSET', key, 'last_inference', string.format('%.0f', last)) end
    for name, amount in pairs(of_bundle) do redis.call('HINCRBY', key, name, string.format('%.0f', amount)) end
  end
end
