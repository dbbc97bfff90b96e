-- Entries as workers take them.

-- Returns why a job must not run, or ''. `gw` is empty if no gateway waits for it.
local function drop_reason(job, now, absence_counts)
  if job.deadline <= now then return 'deadline' end
  if call('EXISTS', 'cancel:' .. job.id) == 1 then return 'cancelled' end
  if absence_counts and job.gw ~= '' and call('EXISTS', 'gw:' .. job.gw) == 0 then return 'gateway' end
  return ''
end

-- Returns a taken entry for the worker (row taken), and whether it is to run. A large message has a key of its own and is read later, in pieces.
local function taken_row(stream, entry, now, absence_counts)
  local job = fields(entry)
  local dropped = drop_reason(job, now, absence_counts)
  if dropped == '' and job.message == '' and call('EXISTS', 'blob:' .. job.id) == 0 then dropped = 'payload' end
  local runs = dropped == ''
  return {stream, entry[1], job.id, job.gw, job.bytes, job.added, dropped, runs and job.message or ''}, runs
end

-- Creates the workers' group of a stream, unless it exists.
local function create_group(stream)
  local made = redis.pcall('XGROUP', 'CREATE', P .. stream, GROUP, 0, 'MKSTREAM')
  if made.err and not string.find(made.err, 'BUSYGROUP', 1, true) then error(made) end  -- unchanged, as its first word is the kind of the error
  try('SADD', 'streams', stream)  -- the janitor reports what is wrong with it
end
