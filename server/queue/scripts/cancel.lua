#!lua flags=allow-oom
-- Nobody waits for these jobs any more. ARGV: job ids.
check_counts()
for _, id in ipairs(ARGV) do call_off(id) end
write_counts()
return redis.status_reply('OK')
