-- What clients' jobs are at work on, the oldest first. ARGV: how many at most.
-- Returns {task, bundle, state, created ms, started ms, done, total, unit} for each, '' where nothing is known. Ids are secrets and stay here.

local FIELDS = {'task', 'bundle', 'state', 'created_ms', 'started_ms', 'done', 'total', 'unit'}
local found = {}
for _, member in ipairs(redis.call('ZRANGE', 'records:open', 0, -1)) do
  local values = redis.call('HMGET', 'record:' .. string.match(member, '^[^:]+'), unpack(FIELDS))
  if values[3] == 'queued' or values[3] == 'running' then
    for i = 1, #FIELDS do values[i] = values[i] or '' end
    found[#found + 1] = values
  end
end
table.sort(found, function(a, b) return tonumber(a[4]) < tonumber(b[4]) end)
return {unpack(found, 1, math.min(#found, tonumber(ARGV[1])))}
