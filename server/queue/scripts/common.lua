-- Stands before every script. One Redis holds all keys of a shard, so scripts may compute key names; the clock is always Redis'.

local GROUP = 'workers'
local HANDED_BACK = 'handed-back'
local LINGER_MS = 60000  -- how long a job's keys outlive its deadline
local REPLIES_TTL_S = 60

local function now_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- Milliseconds in a stream entry's id: when it was added.
local function added_ms(entry_id)
  return tonumber(string.match(entry_id, '^(%d+)'))
end

-- Flat {name, value, name, value} → table.
local function to_table(flat)
  local table = {}
  for i = 1, #flat, 2 do table[flat[i]] = flat[i + 1] end
  return table
end

local function spend_bytes(amount)
  if redis.call('INCRBY', 'queue:bytes', -amount) < 0 then redis.call('SET', 'queue:bytes', 0) end
end

-- Takes an entry out of its stream with all that belongs to its job. False if another had done so before.
local function remove(stream, entry_id, job_id, bytes)
  if redis.call('XACK', stream, GROUP, entry_id) == 0 then return false end
  redis.call('XDEL', stream, entry_id)
  redis.call('DEL', 'job:' .. job_id, 'blob:' .. job_id, 'deaths:' .. job_id, 'cancel:' .. job_id)
  spend_bytes(bytes)
  return true
end

-- The fields of a stream entry. One that is not ours reads as a job that came too late, and goes.
local function fields(entry)
  local job = to_table(entry[2])
  return {id = job.id or '', gw = job.gw or '', deadline = tonumber(job['until']) or 0, bytes = tonumber(job.bytes) or 0, message = job.job or ''}
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

-- A taken entry as the worker reads it: {stream, entry id, job id, gateway, bytes, reason to drop it or '', message}.
local function delivery(stream, entry, now, absence_counts)
  local job = fields(entry)
  local reason, message = verdict(job, now, absence_counts), ''
  if reason == '' then
    message = message_of(job)
    if message == '' then reason = 'payload' end
  end
  return {stream, entry[1], job.id, job.gw, job.bytes, reason, message}
end

-- Unfinished jobs: total, bytes, and a flat list {stream, length, ms of the oldest entry or 0}.
local function load()
  local items, streams = 0, {}
  for _, stream in ipairs(redis.call('SMEMBERS', 'queues')) do
    local length, oldest = redis.call('XLEN', stream), 0
    if length > 0 then oldest = added_ms(redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1][1]) end
    items = items + length
    streams[#streams + 1] = stream
    streams[#streams + 1] = length
    streams[#streams + 1] = oldest
  end
  return items, tonumber(redis.call('GET', 'queue:bytes') or '0'), streams
end
