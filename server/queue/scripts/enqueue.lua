-- Admits the jobs of one request, all or none. A job whose `job:<id>` exists is there already: nothing happens.
-- ARGV: max items, max bytes, then a row (enqueued) for each job.
-- Returns {'ok' | 'full' | 'late', items, bytes} with the load after it.

local max_items, max_bytes = tonumber(ARGV[1]), tonumber(ARGV[2])
local now = now_ms()

local items = 0
for _, stream in ipairs(redis.call('SMEMBERS', 'queues')) do items = items + redis.call('XLEN', stream) end
local bytes = tonumber(redis.call('GET', 'queue:bytes') or '0')

local new, new_bytes = {}, 0
for _, job in ipairs(rows('enqueued', ARGV, 3)) do
  if tonumber(job.deadline_ms) <= now then return {'late', items, bytes} end
  if redis.call('EXISTS', 'job:' .. job.job) == 0 then
    new[#new + 1] = job
    new_bytes = new_bytes + #job.message
  end
end
if #new == 0 then return {'ok', items, bytes} end
if items + #new > max_items or bytes + new_bytes > max_bytes then return {'full', items, bytes} end

for _, job in ipairs(new) do
  local ttl = tonumber(job.deadline_ms) - now + LINGER_MS
  local inline = job.place == 'inline' and job.message or ''
  redis.call('SET', 'job:' .. job.job, #job.message, 'PX', ttl)
  if job.place == 'blob' then redis.call('SET', 'blob:' .. job.job, job.message, 'PX', ttl) end
  redis.call('XADD', job.stream, '*', 'id', job.job, 'gw', job.gateway, 'until', job.deadline_ms, 'bytes', #job.message, 'job', inline)
  redis.call('SADD', 'queues', job.stream)
end
redis.call('INCRBY', 'queue:bytes', new_bytes)
return {'ok', items + #new, bytes + new_bytes}
