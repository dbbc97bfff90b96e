-- What stream entries and the keys of a job hold. What ends jobs needs holdings before it.

-- Flat {name, value, name, value} → table.
local function to_table(flat)
  local table = {}
  for i = 1, #flat, 2 do table[flat[i]] = flat[i + 1] end
  return table
end

-- A whole number as our own processes write them; nil for anything else, also for what Lua would take for one.
local function whole(text)
  return text and #text < 16 and string.match(text, '^%d+$') and tonumber(text) or nil
end

-- The fields of a stream entry. One that is not ours reads as a job that came too late, and goes.
-- `added` is when the job was queued first: `at` says so. The entry's id, which tells it where an older version wrote the entry, never goes back,
-- so it tells nothing for a while once the clock was set back.
local function fields(entry)
  local job = to_table(entry[2])
  return {
    id = job.id or '', gw = job.gw or '', deadline = whole(job['until']) or 0, bytes = whole(job.bytes) or 0,
    message = job.job or '', added = whole(job.at) or tonumber(string.match(entry[1], '^(%d+)')),
  }
end

-- The record that a job belongs to, and its index there; nil for a job that answers a gateway.
local function record_of(job_id) return string.match(job_id, '^(%x+%-%x+)%-(%d+)$') end

-- The one place where a job lets go of what it holds.
local function forget(job_id)
  release(job_id)
  redis.call('DEL', 'job:' .. job_id, 'blob:' .. job_id, 'deaths:' .. job_id, 'cancel:' .. job_id)
end

-- Where a job lies: its stream and the id of its entry there; nil if it is not known.
local function place_of_job(job_id) return string.match(redis.call('GET', 'job:' .. job_id) or '', '^(%S+) (%S+)') end

-- Notes that a job lies elsewhere now. Does nothing if it is not known.
local function move_place(job_id, stream, entry_id)
  local rest = string.match(redis.call('GET', 'job:' .. job_id) or '', '^%S+ %S+(.*)$')
  if rest then redis.call('SET', 'job:' .. job_id, stream .. ' ' .. entry_id .. rest, 'KEEPTTL') end
end

-- Takes an entry out of its stream with all that belongs to its job. False if another had done so before.
local function remove(stream, entry_id, job_id)
  if redis.call('XACK', stream, GROUP, entry_id) == 0 then return false end
  redis.call('XDEL', stream, entry_id)
  forget(job_id)
  return true
end

-- Takes a job that nobody waits for out of the queue, unless a living worker has it: that one is told. Does nothing if it has ended.
local function call_off(job_id)
  local ttl = redis.call('PTTL', 'job:' .. job_id)
  if ttl <= 0 then return end
  local stream, entry_id = place_of_job(job_id)
  local found = stream and redis.pcall('XRANGE', stream, entry_id, entry_id)
  if found and not found.err and found[1] then
    local pending = redis.pcall('XPENDING', stream, GROUP, entry_id, entry_id, 1)
    local holder = not pending.err and pending[1] and pending[1][2]
    if not holder or redis.call('EXISTS', 'worker:' .. holder) == 0 then
      if holder then redis.call('XACK', stream, GROUP, entry_id) end
      redis.call('XDEL', stream, entry_id)
      forget(job_id)
      return
    end
  end
  redis.call('SET', 'cancel:' .. job_id, '1', 'PX', ttl)
end
