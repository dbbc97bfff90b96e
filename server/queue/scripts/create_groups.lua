#!lua flags=allow-oom
-- Creates work streams and their groups, unless they exist. ARGV: msgpack of {work stream…}.
expect('XLEN', unpack(cmsgpack.unpack(ARGV[1])))
for _, stream in ipairs(cmsgpack.unpack(ARGV[1])) do create_group(stream) end
return redis.status_reply('OK')
