-- Removes what nobody will come back for; a bounded piece of work per call.
-- ARGV: cursor of the scan over keys ('0' starts one), how many keys to look at. Returns the next cursor.

local LATE_ENTRIES = 100
local now = now_ms()

for _, id in ipairs(redis.call('SMEMBERS', 'workers')) do
  if redis.call('EXISTS', 'worker:' .. id) == 0 then redis.call('SREM', 'workers', id) end
end

local items = 0
for _, stream in ipairs(redis.call('SMEMBERS', 'queues')) do
  -- jobs of a bundle that no worker serves: their gateway has answered 504 long ago
  for _, entry in ipairs(redis.call('XRANGE', stream, '-', '+', 'COUNT', LATE_ENTRIES)) do
    local job = fields(entry)
    if job.deadline + LINGER_MS < now then
      if not remove(stream, entry[1], job.id, job.bytes) then
        redis.call('XDEL', stream, entry[1])
        redis.call('DEL', 'job:' .. job.id, 'blob:' .. job.id, 'deaths:' .. job.id, 'cancel:' .. job.id)
        spend_bytes(job.bytes)
      end
    end
  end
  local consumers = redis.pcall('XINFO', 'CONSUMERS', stream, GROUP)
  for _, flat in ipairs(consumers) do
    local consumer = to_table(flat)
    if consumer.pending == 0 and redis.call('EXISTS', 'worker:' .. consumer.name) == 0 then
      redis.call('XGROUP', 'DELCONSUMER', stream, GROUP, consumer.name)
    end
  end
  items = items + redis.call('XLEN', stream)
end
if items == 0 then redis.call('SET', 'queue:bytes', 0) end

local scan = redis.call('SCAN', ARGV[1], 'COUNT', ARGV[2])
for _, key in ipairs(scan[2]) do
  local kind, id = string.match(key, '^(%a+):(.*)$')
  if (kind == 'blob' or kind == 'deaths') and redis.call('EXISTS', 'job:' .. id) == 0 then redis.call('DEL', key) end
  if kind == 'replies' and redis.call('EXISTS', 'gw:' .. id) == 0 and redis.call('TTL', key) < 0 then redis.call('EXPIRE', key, REPLIES_TTL_S) end
end
return scan[1]
