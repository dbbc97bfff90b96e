-- How a worker takes entries. Needs items.

-- A taken entry as the worker reads it (row taken), and whether it is to run. A large message lies beside the stream and is read later, in pieces.
local function taken(stream, entry, now, absence_counts)
  local job, dropped = fields(entry), ''
  if job.deadline <= now then
    dropped = 'deadline'
  elseif call('EXISTS', 'cancel:' .. job.id) == 1 then
    dropped = 'cancelled'
  elseif absence_counts and not record_of(job.id) and call('EXISTS', 'gw:' .. job.gw) == 0 then
    dropped = 'gateway'
  elseif job.message == '' and call('EXISTS', 'blob:' .. job.id) == 0 then
    dropped = 'payload'
  end
  local runs = dropped == ''
  return {stream, entry[1], job.id, job.gw, job.bytes, job.added, dropped, runs and job.message or ''}, runs
end

-- Lets workers read a work stream. Does nothing if they can.
local function make_group(stream)
  local made = redis.pcall('XGROUP', 'CREATE', P .. stream, GROUP, 0, 'MKSTREAM')
  if made.err and not string.find(made.err, 'BUSYGROUP', 1, true) then error(made) end  -- as Redis said it, so that its first word tells what it is
  call('SADD', 'streams', stream)
end
