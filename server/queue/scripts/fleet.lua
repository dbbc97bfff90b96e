-- Who serves what. Returns {worker messages, repository as a flat list}.

local workers = {}
for _, id in ipairs(redis.call('SMEMBERS', 'workers')) do
  local message = redis.call('GET', 'worker:' .. id)
  if message then workers[#workers + 1] = message end
end
return {workers, redis.call('HGETALL', 'repository')}
