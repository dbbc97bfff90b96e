-- Admits the jobs of one request, all or none. A job whose `job:<id>` exists is there already: nothing happens.
-- ARGV: max items, max bytes, then per job: id, stream, gateway, deadline ms, 'inline' | 'blob', message.
-- Returns {'ok' | 'full' | 'late', items, bytes} with the load after it.

local max_items, max_bytes = tonumber(ARGV[1]), tonumber(ARGV[2])
local now = now_ms()

local items = 0
for _, stream in ipairs(redis.call('SMEMBERS', 'queues')) do items = items + redis.call('XLEN', stream) end
local bytes = tonumber(redis.call('GET', 'queue:bytes') or '0')

local new, new_bytes = {}, 0
for i = 3, #ARGV, 6 do
  if tonumber(ARGV[i + 3]) <= now then return {'late', items, bytes} end
  if redis.call('EXISTS', 'job:' .. ARGV[i]) == 0 then
    new[#new + 1] = i
    new_bytes = new_bytes + #ARGV[i + 5]
  end
end
if #new == 0 then return {'ok', items, bytes} end
if items + #new > max_items or bytes + new_bytes > max_bytes then return {'full', items, bytes} end

for _, i in ipairs(new) do
  local id, stream, gateway, deadline, message = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 5]
  local ttl = tonumber(deadline) - now + LINGER_MS
  redis.call('SET', 'job:' .. id, #message, 'PX', ttl)
  if ARGV[i + 4] == 'blob' then
    redis.call('SET', 'blob:' .. id, message, 'PX', ttl)
    redis.call('XADD', stream, '*', 'id', id, 'gw', gateway, 'until', deadline, 'bytes', #message, 'job', '')
  else
    redis.call('XADD', stream, '*', 'id', id, 'gw', gateway, 'until', deadline, 'bytes', #message, 'job', message)
  end
  redis.call('SADD', 'queues', stream)
end
redis.call('INCRBY', 'queue:bytes', new_bytes)
return {'ok', items + #new, bytes + new_bytes}
