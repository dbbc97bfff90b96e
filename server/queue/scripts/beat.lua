#!lua flags=allow-oom
-- A gateway's sign of life, once a second, and what it wants to know at that rate.
-- ARGV: gateway, ttl ms, id of the last reply it has read, the forms of messages that it understands, an epoch for a Redis that has none,
-- ms until records may be swept again, then name, amount, name, amount, … of what it has counted since the last time, for the history.
-- Returns {1 if Redis still knew the gateway, epoch, 1 if it is this gateway's turn to sweep records, flat {bundle, items}… of clients' jobs that
-- are done and that no gateway has counted yet, now ms, and the unfinished items: how many, bytes, ms of work, stream_loads, flat {owner, what
-- it holds}…, and how many gateways live}.
local gateway, replies = 'gw:' .. ARGV[1], 'replies:' .. ARGV[1]
local known, epoch = call('EXISTS', gateway), call('GET', 'epoch')
if epoch and not (#epoch == 8 and string.match(epoch, '^%x+$')) then unreadable('epoch', epoch) end
check_records(now_ms())
expect('SCARD', 'gateways', 'workers', 'streams')
expect('LLEN', 'stats:batches')
expect('XLEN', 'dead', replies)
local all, loads, owners = all_held(), stream_loads(), call('HGETALL', OWNERS)
call('SET', gateway, ARGV[4], 'PX', ARGV[2])
call('SADD', 'gateways', ARGV[1])
call('XTRIM', replies, 'MINID', ARGV[3])
call('EXPIRE', replies, REPLIES_TTL_S)
if not epoch then call('SET', 'epoch', ARGV[5]) end
for i = 7, #ARGV, 2 do note(step_of(now_ms()), ARGV[i], tonumber(ARGV[i + 1])) end
local sweeps = call('ZCARD', OPEN) > 0 and take_turn('records:sweep', ARGV[1], ARGV[6])
local items = call('HGETALL', 'records:items')
if #items > 0 then call('DEL', 'records:items') end
local living = 0
for _, id in ipairs(call('SMEMBERS', 'gateways')) do living = living + call('EXISTS', 'gw:' .. id) end
return {known, epoch or ARGV[5], sweeps and 1 or 0, items, now_ms(), all.items, all.nbytes, all.work, loads, owners, living}
