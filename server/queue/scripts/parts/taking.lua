-- How a worker takes entries. Needs items.

-- Why a job that was taken should not run, or ''.
local function verdict(job, now, absence_counts)
  if job.deadline <= now then return 'deadline' end
  if call('EXISTS', 'cancel:' .. job.id) == 1 then return 'cancelled' end
  if absence_counts and not record_of(job.id) and call('EXISTS', 'gw:' .. job.gw) == 0 then return 'gateway' end
  return ''
end

-- A taken entry as the worker reads it (row taken), and whether it is to run. A large message lies beside the stream and is read later, in pieces.
local function taken(stream, entry, now, absence_counts)
  local job = fields(entry)
  local dropped = verdict(job, now, absence_counts)
  if dropped == '' and job.message == '' and call('EXISTS', 'blob:' .. job.id) == 0 then dropped = 'payload' end
  local runs = dropped == ''
  return {stream, entry[1], job.id, job.gw, job.bytes, job.added, dropped, runs and job.message or ''}, runs
end

-- Lets workers read a work stream. Does nothing if they can.
local function make_group(stream)
  local made = redis.pcall('XGROUP', 'CREATE', P .. stream, GROUP, 0, 'MKSTREAM')
  if made.err and not string.find(made.err, 'BUSYGROUP', 1, true) then error(made) end  -- as Redis said it, so that its first word tells what it is
  call('SADD', 'streams', stream)
end

local MOST_PENDING = 256

-- Consumers of a stream that have entries in their hands and no worker:<id> key: {name…}.
local function dead_consumers(stream, me)
  local names = {}
  local consumers = redis.pcall('XINFO', 'CONSUMERS', P .. stream, GROUP)
  for _, flat in ipairs(consumers) do
    local consumer = to_table(flat)
    if consumer.name ~= me and consumer.pending > 0 and call('EXISTS', 'worker:' .. consumer.name) == 0 then
      names[#names + 1] = consumer.name
    end
  end
  return names
end

-- What a dead worker was running (begin_step.lua): job id → 'alone' or 'together'.
local function last_steps(dead)
  local running = {}
  for _, packed in ipairs(call('HVALS', 'suspects:' .. dead)) do
    if packed ~= '' then
      local how, ids = unpack(cmsgpack.unpack(packed))
      for _, id in ipairs(ids) do running[id] = how end
    end
  end
  return running
end

-- The jobs of a stream that a dead worker may have died of: {entry id…}. What merely waited between two steps is put back, and charged nothing;
-- what was a suspect before stays one.
local function suspects(stream, dead)
  local found, running = {}, last_steps(dead)
  for _, pending in ipairs(call('XPENDING', stream, GROUP, '-', '+', MOST_PENDING, dead)) do
    local entry = call('XRANGE', stream, pending[1], pending[1])[1]
    local job = entry and fields(entry)
    if job and not running[job.id] and call('EXISTS', 'deaths:' .. job.id) == 0 then
      put_back(stream, pending[1], job.added)
    else
      found[#found + 1] = pending[1]
    end
  end
  return found
end
