-- needs: jobs records
-- Keeps a scene that was written as `stage:<id>`, so that it can be asked again. ARGV: id, its time to live in ms, max bytes of results.
-- Returns 1; 0 if there is no room beside what results take, or it was not staged.

local id, ttl, max_results = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local now = now_ms()
local staged, key = 'stage:' .. id, 'scene:' .. id
local bytes = redis.call('STRLEN', staged)
if bytes == 0 then return 0 end
local _, _, results = held(now)
if results - redis.call('STRLEN', key) + bytes + RECORD_BYTES > max_results then
  redis.call('DEL', staged)
  return 0
end
redis.call('RENAME', staged, key)
redis.call('PEXPIRE', key, ttl)
keep(id, bytes, 'scene', now + ttl)
return 1
