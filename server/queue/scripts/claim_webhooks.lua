#!lua flags=allow-oom
-- Claims webhooks that are due, under a lease: if their gateway dies, another one claims them once it has expired.
-- ARGV: msgpack of a WebhookClaim. Returns {number of webhooks dropped since the last call, {{id, number of this try, values of the fields}…}}.
local MAX_CHECKED = 1000
local args = cmsgpack.unpack(ARGV[1])
local of_host = args.of_host
local now, claimed = now_ms(), {}
local due = call('ZRANGEBYSCORE', WEBHOOKS, '-inf', now, 'LIMIT', 0, MAX_CHECKED)
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
    claimed[#claimed + 1] = {id, increment(key, 'tries', 1), call('HMGET', key, unpack(args.names))}
  elseif #due == MAX_CHECKED then
    call('ZADD', WEBHOOKS, now, id)  -- behind those of other hosts, which would not be checked
  end
end
local dropped = try('GETDEL', DROPPED)
return {type(dropped) == 'string' and tonumber(dropped) or 0, claimed}
