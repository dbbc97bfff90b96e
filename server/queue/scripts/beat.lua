-- needs: jobs loads
-- A gateway's sign of life, once a second, and what it wants to know at that rate.
-- ARGV: gateway, ttl ms, id of the last reply it has read, the forms of messages that it understands.
-- Returns {1 if Redis still knew the gateway, now ms, items, bytes, rows (stream_load)}.

local gateway, replies = 'gw:' .. ARGV[1], 'replies:' .. ARGV[1]
local known = redis.call('EXISTS', gateway)
redis.call('SET', gateway, ARGV[4], 'PX', ARGV[2])
redis.call('SADD', 'gateways', ARGV[1])
redis.call('XTRIM', replies, 'MINID', ARGV[3])
redis.call('EXPIRE', replies, REPLIES_TTL_S)
local items, bytes, streams = load()
return {known, now_ms(), items, bytes, streams}
