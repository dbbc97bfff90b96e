#!lua flags=allow-oom
-- needs: items history records
-- Takes ends of clients' jobs that somebody is to be told of now, under a lease: if their gateway dies, another one comes when it has run out.
-- ARGV: how many at most, the lease in ms, then names of fields.
-- Returns {how many ends were dropped since the last call, {id, which try this is, values of the fields}…}.

local now, claimed = now_ms(), {}
for _, id in ipairs(call('ZRANGEBYSCORE', WEBHOOKS, '-inf', now, 'LIMIT', 0, ARGV[1])) do
  local key = 'webhook:' .. id
  if call('EXISTS', key) == 1 then
    call('ZADD', WEBHOOKS, now + ARGV[2], id)
    claimed[#claimed + 1] = {id, call('HINCRBY', key, 'tries', 1), call('HMGET', key, unpack(ARGV, 3))}
  else
    call('ZREM', WEBHOOKS, id)  -- it has expired
  end
end
return {tonumber(call('GETDEL', WEBHOOKS .. ':dropped') or '0'), unpack(claimed)}
