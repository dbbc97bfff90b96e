-- needs: jobs history records looking
-- How many clients' jobs there are. Returns {bytes of results kept and of their records, flat {state, count}…, flat {state, how many have
-- ended so}…}; only states that occur.

local now, counts, bytes = now_ms(), {}, 0
for _, member in ipairs(redis.call('ZRANGE', OPEN, 0, -1)) do
  local id = string.match(member, '^[^:]+')
  local record = record_at(id)
  if record then
    notice_start(id, record, now)
    counts[record.state] = (counts[record.state] or 0) + 1
  end
end
local count, totals = kept(now)
for name, total in pairs(totals) do
  if name == 'bytes' then
    bytes = count * RECORD_BYTES + total
  elseif total ~= '0' then
    counts[name] = tonumber(total)
  end
end
local flat = {}
for state, count in pairs(counts) do
  flat[#flat + 1] = state
  flat[#flat + 1] = count
end
return {bytes, flat, redis.call('HGETALL', ENDED)}
