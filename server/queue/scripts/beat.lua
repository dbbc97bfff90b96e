#!lua flags=allow-oom
-- A gateway's heartbeat, once a second. ARGV: msgpack of a SignOfLife. Returns a BeatAnswer (gateway/dispatcher.py).
local args = cmsgpack.unpack(ARGV[1])
local gateway, replies = 'gw:' .. args.gateway, 'replies:' .. args.gateway
local known, epoch = call('EXISTS', gateway), call('GET', 'epoch')
if epoch and not (#epoch == 8 and string.match(epoch, '^%x+$')) then unreadable('epoch', epoch) end
-- Redis may have lost its last writes where it restarted, or another server took over: records of earlier epochs are lost if they are missing.
local server = redis.pcall('INFO', 'server')
local run = string.match(server.err or server, 'run_id:(%x+)') or ''
if call('GET', 'epoch:run') ~= run then epoch = nil end
check_records(now_ms())
expect('SCARD', 'gateways', 'workers', 'streams')
expect('LLEN', 'stats:batches')
expect('HLEN', 'gateways:waiting')
expect('XLEN', 'dead', replies)
local all, loads = total_usage(), stream_loads()
call('SET', gateway, args.forms, 'PX', args.ttl_ms)
call('SADD', 'gateways', args.gateway)
if args.waiting > 0 then call('HSET', 'gateways:waiting', args.gateway, args.waiting) else call('HDEL', 'gateways:waiting', args.gateway) end
call('XTRIM', replies, 'MINID', args.last_read)
call('EXPIRE', replies, REPLIES_TTL_S)
if not epoch then redis.call('MSET', P .. 'epoch', args.epoch, P .. 'epoch:run', run) end
for name, amount in pairs(args.counts) do add_count(step_of(now_ms()), name, amount) end
local sweeps = call('ZCARD', OPEN) > 0 and take_turn('records:sweep', args.gateway, args.sweep_ms)
local items = call('HGETALL', 'records:items')
call('DEL', 'records:items')
local living = 0
for _, id in ipairs(call('SMEMBERS', 'gateways')) do living = living + call('EXISTS', 'gw:' .. id) end
return {known, epoch or args.epoch, sweeps and 1 or 0, items, now_ms(), all.items, all.nbytes, all.work, loads, living}
