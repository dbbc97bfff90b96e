-- How a worker takes entries.

-- Why a job must not run, or ''. `gw` is empty where no gateway waits for it.
local function verdict(job, now, absence_counts)
  if job.deadline <= now then return 'deadline' end
  if call('EXISTS', 'cancel:' .. job.id) == 1 then return 'cancelled' end
  if absence_counts and job.gw ~= '' and call('EXISTS', 'gw:' .. job.gw) == 0 then return 'gateway' end
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
  try('SADD', 'streams', stream)  -- the janitor names what is wrong with it
end
