-- needs: jobs loads turns
-- A gateway's sign of life, once a second, and what it wants to know at that rate.
-- ARGV: gateway, ttl ms, id of the last reply it has read, the forms of messages that it understands, an epoch for a Redis that has none,
-- ms until records may be swept again.
-- Returns {1 if Redis still knew the gateway, epoch, 1 if it is this gateway's turn to sweep records, flat {bundle, items}… of clients' jobs that
-- are done and that no gateway has counted yet, and what load.lua returns}.

local gateway, replies = 'gw:' .. ARGV[1], 'replies:' .. ARGV[1]
local known = redis.call('EXISTS', gateway)
redis.call('SET', gateway, ARGV[4], 'PX', ARGV[2])
redis.call('SADD', 'gateways', ARGV[1])
redis.call('XTRIM', replies, 'MINID', ARGV[3])
redis.call('EXPIRE', replies, REPLIES_TTL_S)
redis.call('SET', 'epoch', ARGV[5], 'NX')
local sweeps = redis.call('ZCARD', 'records:open') > 0 and take_turn('records:sweep', ARGV[1], ARGV[6])
local items = redis.call('HGETALL', 'records:items')
if #items > 0 then redis.call('DEL', 'records:items') end
return {known, redis.call('GET', 'epoch'), sweeps and 1 or 0, items, now_ms(), load()}
