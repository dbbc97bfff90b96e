#!lua flags=allow-oom
-- needs: items history records
-- Ends a try to tell of a job's end. Does nothing where another gateway has begun the next one.
-- ARGV: id of the record, which try it was, ms after the job's end until the next one; empty: there is none.

local id, key = ARGV[1], 'webhook:' .. ARGV[1]
local tries, finished = unpack(call('HMGET', key, 'tries', 'finished_ms'))
if tries ~= ARGV[2] then return redis.status_reply('OK') end
if ARGV[3] == '' then
  call('ZREM', WEBHOOKS, id)
  call('DEL', key)
else
  call('ZADD', WEBHOOKS, math.max(now_ms(), finished + ARGV[3]), id)
end
return redis.status_reply('OK')
