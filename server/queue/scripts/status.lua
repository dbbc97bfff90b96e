-- needs: jobs loads history counting
-- What the status page shows. ARGV: steps of history, most dead letters.
-- Returns {now ms, living gateways, rows (stream_load)…, entries that workers hold of each of them…, {step, flat counts}…,
-- {entry id, stream, reason}…}.

count_batches(redis.call('LLEN', 'stats:uncounted'))
local now = now_ms()

local gateways = 0
for _, id in ipairs(redis.call('SMEMBERS', 'gateways')) do gateways = gateways + redis.call('EXISTS', 'gw:' .. id) end

local _, _, streams = load()
local held = {}
for i, stream in ipairs(redis.call('SMEMBERS', 'queues')) do
  held[i] = 0
  local pending = redis.pcall('XPENDING', stream, GROUP)  -- a stream may have no group yet
  for _, consumer in ipairs(pending[4] or {}) do
    if redis.call('EXISTS', 'worker:' .. consumer[1]) == 1 then held[i] = held[i] + tonumber(consumer[2]) end
  end
end

local history = {}
for step = step_of(now) - tonumber(ARGV[1]), step_of(now) - 1 do
  local counts = redis.call('HGETALL', 'history:' .. string.format('%d', step))
  if #counts > 0 then history[#history + 1] = {step, counts} end
end

local letters = {}
for _, entry in ipairs(redis.call('XREVRANGE', 'dead', '+', '-', 'COUNT', ARGV[2])) do
  local letter = to_table(entry[2])
  letters[#letters + 1] = {entry[1], letter.stream or '', letter.reason or ''}
end

return {now, gateways, streams, held, history, letters}
