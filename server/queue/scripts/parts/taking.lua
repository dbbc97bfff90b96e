-- How a worker takes entries. Needs jobs.

-- Why a job that was taken should not run, or ''.
local function verdict(job, now, absence_counts)
  if job.deadline <= now then return 'deadline' end
  if redis.call('EXISTS', 'cancel:' .. job.id) == 1 then return 'cancelled' end
  if absence_counts and not record_of(job.id) and redis.call('EXISTS', 'gw:' .. job.gw) == 0 then return 'gateway' end
  return ''
end

-- A taken entry as the worker reads it, and whether it is to run. A large message lies beside the stream and is read later, in pieces.
local function taken(stream, entry, now, absence_counts)
  local job = fields(entry)
  local dropped = verdict(job, now, absence_counts)
  if dropped == '' and job.message == '' and redis.call('EXISTS', 'blob:' .. job.id) == 0 then dropped = 'payload' end
  return row_taken({
    stream = stream, entry = entry[1], job = job.id, gateway = job.gw, nbytes = job.bytes, added_ms = job.added,
    dropped = dropped, message = dropped == '' and job.message or '',
  }), dropped == ''
end

-- Lets workers read a work stream. Does nothing if they can.
local function make_group(stream)
  local made = redis.pcall('XGROUP', 'CREATE', stream, GROUP, 0, 'MKSTREAM')
  if made.err and not string.find(made.err, 'BUSYGROUP', 1, true) then error(made) end  -- as Redis said it, so that its first word tells what it is
  redis.call('SADD', 'streams', stream)
end
