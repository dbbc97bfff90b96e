#!lua flags=allow-oom
-- Takes ends of clients' jobs that somebody is to be told of now, under a lease: if their gateway dies, another one comes when it has run out.
-- ARGV: msgpack of a WebhookClaim. Returns {how many ends were dropped since the last call, {{id, which try this is, values of the fields}…}}.
local LOOKED_AT = 1000
local args = cmsgpack.unpack(ARGV[1])
local of_host = args.of_host
local now, claimed = now_ms(), {}
local due = call('ZRANGEBYSCORE', WEBHOOKS, '-inf', now, 'LIMIT', 0, LOOKED_AT)
for _, id in ipairs(due) do
  if #claimed == args.max_count then break end
  local key = 'webhook:' .. id
  local url = try('HGET', key, 'webhook')
  local host = type(url) == 'string' and string.match(url, '^https://([^/?#]+)')
  if not host then
    call('ZREM', WEBHOOKS, id)  -- it has expired
  elseif (of_host[host] or 0) < args.most_of_host then
    of_host[host] = (of_host[host] or 0) + 1
    call('ZADD', WEBHOOKS, now + args.lease_ms, id)
    claimed[#claimed + 1] = {id, add(key, 'tries', 1), call('HMGET', key, unpack(args.names))}
  elseif #due == LOOKED_AT then
    call('ZADD', WEBHOOKS, now, id)  -- behind those of other hosts, which would not be looked at
  end
end
local dropped = try('GETDEL', DROPPED)
return {type(dropped) == 'string' and tonumber(dropped) or 0, claimed}
