-- Nobody waits for these jobs any more: marks those that are unfinished, for as long as they are known. ARGV: job ids.

for _, id in ipairs(ARGV) do
  local ttl = redis.call('PTTL', 'job:' .. id)
  if ttl > 0 then redis.call('SET', 'cancel:' .. id, '1', 'PX', ttl) end
end
return redis.status_reply('OK')
