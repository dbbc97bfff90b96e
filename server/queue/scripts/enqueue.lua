-- Admits the jobs of several requests; those of one request all or none. A job whose `job:<id>` exists is there already: nothing happens.
-- ARGV: max items, max bytes, then for each request a row (request) and a row (enqueued) for each of its jobs.
-- Returns {items, bytes, {'ok' | 'full' | 'late' for each request}} with the load after it.

local max_items, max_bytes = tonumber(ARGV[1]), tonumber(ARGV[2])
local now = now_ms()

local items, known = 0, {}
for _, stream in ipairs(redis.call('SMEMBERS', 'queues')) do
  known[stream] = true
  items = items + redis.call('XLEN', stream)
end
local bytes = tonumber(redis.call('GET', 'queue:bytes') or '0')

local function add(job)
  local ttl = tonumber(job.deadline_ms) - now + LINGER_MS
  local inline = job.place == 'inline' and job.message or ''
  redis.call('SET', 'job:' .. job.job, #job.message, 'PX', ttl)
  if job.place == 'blob' then redis.call('SET', 'blob:' .. job.job, job.message, 'PX', ttl) end
  redis.call('XADD', job.stream, '*', 'id', job.job, 'gw', job.gateway, 'until', job.deadline_ms, 'bytes', #job.message, 'job', inline)
  if not known[job.stream] then
    redis.call('SADD', 'queues', job.stream)
    known[job.stream] = true
  end
end

local function admit(jobs, again)
  local new, new_bytes = {}, 0
  for _, job in ipairs(jobs) do
    if tonumber(job.deadline_ms) <= now then return 'late' end
    if redis.call('EXISTS', 'job:' .. job.job) == 0 then
      new[#new + 1] = job
      new_bytes = new_bytes + #job.message
    end
  end
  if #new > 0 and not again and (items + #new > max_items or bytes + new_bytes > max_bytes) then return 'full' end
  for _, job in ipairs(new) do add(job) end
  items, bytes = items + #new, bytes + new_bytes
  return 'ok'
end

local before, statuses, at = bytes, {}, 3
while at <= #ARGV do
  local request, jobs = nil, {}
  request, at = read_request(ARGV, at)
  for i = 1, tonumber(request.jobs) do jobs[i], at = read_enqueued(ARGV, at) end
  statuses[#statuses + 1] = admit(jobs, request.again == '1')
end
if bytes > before then redis.call('INCRBY', 'queue:bytes', bytes - before) end
return {items, bytes, statuses}
