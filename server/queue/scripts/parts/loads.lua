-- How full the queues are. Needs jobs.

-- Unfinished jobs: total, bytes, a row for each stream, ms of work, and flat what each owner holds (see parts/holdings.lua).
local function load()
  local items, streams = 0, {}
  for _, stream in ipairs(redis.call('SMEMBERS', 'queues')) do
    local length, oldest = redis.call('XLEN', stream), 0
    if length > 0 then oldest = fields(redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]).added end
    items = items + length
    streams[#streams + 1] = row_stream_load({stream = stream, length = length, oldest_ms = oldest})
  end
  local bytes, work = tonumber(redis.call('GET', 'queue:bytes') or '0'), tonumber(redis.call('GET', 'queue:work') or '0')
  return items, bytes, streams, work, redis.call('HGETALL', 'queue:owners')
end
