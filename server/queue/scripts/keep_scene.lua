#!lua
-- Keeps a scene that was written under a key of its own, so that it can be queried again. ARGV: msgpack of {id, that key, time to live in ms,
-- max bytes of results}. Returns 1; 0 if results and scenes would exceed the maximum, or if the scene was not written. A scene that was kept
-- before, when its answer was fetched, stays in any case.
local id, staged, ttl, max_results = unpack(cmsgpack.unpack(ARGV[1]))
local now = now_ms()
local key = 'scene:' .. id
expect('ZCARD', OPEN, KEPT)
expect('HLEN', TOTALS)
local bytes, before = call('STRLEN', staged), call('STRLEN', key)
local _, results = open_usage(now)
local more = before > 0 and bytes - before or bytes + RECORD_BYTES
if bytes == 0 or results + more > max_results then
  call('DEL', staged)
  return before > 0 and 1 or 0
end
redis.call('RENAME', P .. staged, P .. key)
call('PEXPIRE', key, ttl)
add_kept(id, bytes, 'scene', now + ttl)
return 1
