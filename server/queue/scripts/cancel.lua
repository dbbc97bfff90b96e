#!lua flags=allow-oom
-- Cancels jobs for which no client waits. ARGV: msgpack of {job id…}.
check_counts()
for _, id in ipairs(cmsgpack.unpack(ARGV[1])) do cancel_job(id) end
write_counts()
return redis.status_reply('OK')
