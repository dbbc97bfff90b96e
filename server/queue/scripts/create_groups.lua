#!lua flags=allow-oom
-- Makes sure that work streams and their groups exist. ARGV: work streams.
expect('XLEN', unpack(ARGV))
for _, stream in ipairs(ARGV) do make_group(stream) end
return redis.status_reply('OK')
