#!lua
-- Keeps a scene that was written under a key of its own, so that it can be asked again. ARGV: msgpack of {id, that key, its time to live in ms, max bytes of results}.
-- Returns 1; 0 if there is no room beside what results take, or it was not written. One that is kept already, since its answer was
-- fetched before, stays without room, too.
local id, staged, ttl, max_results = unpack(cmsgpack.unpack(ARGV[1]))
local now = now_ms()
local key = 'scene:' .. id
expect('ZCARD', OPEN, KEPT)
expect('HLEN', TOTALS)
local bytes, before = call('STRLEN', staged), call('STRLEN', key)
local _, results = held(now)
local more = before > 0 and bytes - before or bytes + RECORD_BYTES
if bytes == 0 or results + more > max_results then
  call('DEL', staged)
  return before > 0 and 1 or 0
end
redis.call('RENAME', P .. staged, P .. key)
call('PEXPIRE', key, ttl)
keep(id, bytes, 'scene', now + ttl)
return 1
