#!lua flags=allow-oom
-- Makes sure that work streams and their groups exist. ARGV: msgpack of {work stream…}.
expect('XLEN', unpack(cmsgpack.unpack(ARGV[1])))
for _, stream in ipairs(cmsgpack.unpack(ARGV[1])) do make_group(stream) end
return redis.status_reply('OK')
