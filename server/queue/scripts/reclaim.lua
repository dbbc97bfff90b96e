#!lua flags=allow-oom
-- Claims one job that a worker without a worker:<id> key may have died of. It runs alone from then on, and each death while it runs alone is counted.
-- Jobs that only waited in a dead worker return to the queue.
-- ARGV: msgpack of {the claiming consumer, {work stream…}}. Returns {now ms, row (taken), deaths while alone, the dead worker} or {now ms}.
local MAX_PENDING = 256
local now, claimant, streams = now_ms(), unpack(cmsgpack.unpack(ARGV[1]))

-- Returns the jobs that a dead worker was running (begin_step.lua): job id → 'alone' or 'together'.
local function last_steps(dead)
  local running = {}
  for _, packed in ipairs(try('HVALS', 'suspects:' .. dead)) do  -- none if another program has written the key
    local mode, ids = unpack(decode(packed) or {})
    for _, id in ipairs(ids or {}) do running[id] = mode end
  end
  return running
end

-- Claims the first job of a stream that a dead worker may have died of. Jobs that only waited between two steps are requeued, and no death is
-- counted for them; jobs that were suspects before stay suspects.
local function claim_suspect(stream, dead)
  local running, claimed = last_steps(dead)
  for _, pending in ipairs(call('XPENDING', stream, GROUP, '-', '+', MAX_PENDING, dead)) do
    local entry = call('XRANGE', stream, pending[1], pending[1])[1]
    local job = entry and fields(entry)
    if job and not running[job.id] and call('EXISTS', 'deaths:' .. job.id) == 0 then
      requeue(stream, pending[1])
    elseif not claimed then
      call('XCLAIM', stream, GROUP, claimant, 0, pending[1])
      if job then  -- else it was deleted by hand, and is not pending any more
        if type(try('INCRBY', 'deaths:' .. job.id, 0)) == 'table' then call('DEL', 'deaths:' .. job.id) end
        local deaths = call('INCRBY', 'deaths:' .. job.id, running[job.id] == 'alone' and 1 or 0)
        call('PEXPIRE', 'deaths:' .. job.id, math.max(1, job.deadline - now + KEY_GRACE_MS))
        claimed = {now, taken_row(stream, entry, now, true), deaths, dead}
      end
    end
  end
  return claimed
end

expect('SCARD', 'queues')
for _, stream in ipairs(streams) do expect('XLEN', stream, (back_of(stream))) end
for _, stream in ipairs(streams) do
  for _, flat in ipairs(redis.pcall('XINFO', 'CONSUMERS', P .. stream, GROUP)) do
    local consumer = to_table(flat)
    local is_dead = consumer.name ~= claimant and consumer.pending > 0 and call('EXISTS', 'worker:' .. consumer.name) == 0
    local claimed = is_dead and claim_suspect(stream, consumer.name)
    if claimed then return claimed end
  end
end
return {now}
