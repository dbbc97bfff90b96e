#!lua flags=allow-oom
-- Ends a try to tell of a job's end. Does nothing where another gateway has begun the next one.
-- ARGV: id of the record, which try it was, ms after the job's end until the next one (empty: there is none), ms from now where these have
-- passed, since no gateway was there.
local id, key = ARGV[1], 'webhook:' .. ARGV[1]
local tries, finished = unpack(call('HMGET', key, 'tries', 'finished_ms'))
if tries ~= ARGV[2] then return redis.status_reply('OK') end
if ARGV[3] == '' then
  call('ZREM', WEBHOOKS, id)
  call('DEL', key)
else
  local now, due = now_ms(), finished + ARGV[3]
  call('ZADD', WEBHOOKS, due > now and due or now + ARGV[4], id)
end
return redis.status_reply('OK')
