#!lua flags=allow-oom
-- Ends a try to send a webhook. Does nothing if another gateway has started the next one.
-- ARGV: msgpack of a WebhookTry, id of the record.
local args, id, key = cmsgpack.unpack(ARGV[1]), ARGV[2], 'webhook:' .. ARGV[2]
local tries, finished = unpack(call('HMGET', key, 'tries', 'finished_ms'))
if tonumber(tries or 0) ~= args.attempt then return redis.status_reply('OK') end
if not args.delay_ms then
  call('ZREM', WEBHOOKS, id)
  call('DEL', key)
else
  local now, due = now_ms(), finished + args.delay_ms
  call('ZADD', WEBHOOKS, due > now and due or now + args.gap_ms, id)
end
return redis.status_reply('OK')
