#!lua flags=allow-oom
-- Nobody waits for these jobs any more. ARGV: msgpack of {job id…}.
check_counts()
for _, id in ipairs(cmsgpack.unpack(ARGV[1])) do call_off(id) end
write_counts()
return redis.status_reply('OK')
