-- needs: jobs records looking
-- How many clients' jobs there are. Returns {bytes of results kept, flat {state, count}…}; only states that occur.

local now, counts, bytes = now_ms(), {}, 0
for _, member in ipairs(redis.call('ZRANGE', OPEN, 0, -1)) do
  local id = string.match(member, '^[^:]+')
  local record = record_at(id)
  if record then
    notice_start(id, record, now)
    counts[record.state] = (counts[record.state] or 0) + 1
  end
end
for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEPT, now, '+inf')) do
  local nbytes, state = string.match(member, '^[^:]+:(%d+):(%a+)$')
  counts[state] = (counts[state] or 0) + 1
  bytes = bytes + nbytes
end
local flat = {}
for state, count in pairs(counts) do
  flat[#flat + 1] = state
  flat[#flat + 1] = count
end
return {bytes, flat}
