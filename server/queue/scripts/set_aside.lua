-- needs: history
-- Frees the names that are ours from what somebody else has put there: a key of another type would stop every script that uses it.
-- ARGV: name, type, name, type, …. Also looked at: the work streams that are known, the statistics of their bundles, the history of now.
-- Returns the names that were freed, each with the one under which its content lies now.

local freed = {}

local function free(name, wanted)
  local found = redis.call('TYPE', name)['ok']
  if found == 'none' or found == wanted then return end
  local aside = 'set-aside:' .. name .. ':' .. string.format('%.0f', now_ms())
  redis.call('RENAME', name, aside)
  freed[#freed + 1] = name
  freed[#freed + 1] = aside
end

for i = 1, #ARGV, 2 do free(ARGV[i], ARGV[i + 1]) end
for _, names in ipairs({'queues', 'streams'}) do
  for _, stream in ipairs(redis.call('SMEMBERS', names)) do
    free(stream, 'stream')
    local bundle = string.match(stream, '^queue:([^:]+):')
    if bundle then free('stats:' .. bundle, 'hash') end
  end
end
free('history:' .. string.format('%d', step_of(now_ms())), 'hash')
return freed
