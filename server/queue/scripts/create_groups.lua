#!lua flags=allow-oom
-- Makes sure that work streams and their groups exist. ARGV: msgpack of {work stream…}.
local streams = cmsgpack.unpack(ARGV[1])
expect('XLEN', unpack(streams))
for _, stream in ipairs(streams) do make_group(stream) end
return redis.status_reply('OK')
