#!lua flags=allow-oom
-- Takes ends of clients' jobs that somebody is to be told of now, under a lease: if their gateway dies, another one comes when it has run out.
-- ARGV: how many at most; the lease in ms; how many of one host at most, whose rest waits; msgpack of host → how many of them the gateway is
-- telling now; then names of fields.
-- Returns {how many ends were dropped since the last call, {id, which try this is, values of the fields}…}.
local LOOKED_AT = 1000
local most, most_of_host, of_host = tonumber(ARGV[1]), tonumber(ARGV[3]), cmsgpack.unpack(ARGV[4])
local now, claimed = now_ms(), {}
local due = call('ZRANGEBYSCORE', WEBHOOKS, '-inf', now, 'LIMIT', 0, LOOKED_AT)
for _, id in ipairs(due) do
  if #claimed == most then break end
  local key = 'webhook:' .. id
  local url = try('HGET', key, 'webhook')
  local host = type(url) == 'string' and string.match(url, '^https://([^/?#]+)')
  if not host then
    call('ZREM', WEBHOOKS, id)  -- it has expired
  elseif (of_host[host] or 0) < most_of_host then
    of_host[host] = (of_host[host] or 0) + 1
    call('ZADD', WEBHOOKS, now + ARGV[2], id)
    claimed[#claimed + 1] = {id, add(key, 'tries', 1), call('HMGET', key, unpack(ARGV, 5))}
  elseif #due == LOOKED_AT then
    call('ZADD', WEBHOOKS, now, id)  -- behind those of other hosts, which would not be looked at
  end
end
local dropped = try('GETDEL', DROPPED)
return {type(dropped) == 'string' and tonumber(dropped) or 0, unpack(claimed)}
