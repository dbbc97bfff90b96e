-- How full the queues are. Needs jobs.

-- Unfinished jobs: total, bytes, and a row for each stream.
local function load()
  local items, streams = 0, {}
  for _, stream in ipairs(redis.call('SMEMBERS', 'queues')) do
    local length, oldest = redis.call('XLEN', stream), 0
    if length > 0 then oldest = fields(redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]).added end
    items = items + length
    streams[#streams + 1] = row_stream_load({stream = stream, length = length, oldest_ms = oldest})
  end
  return items, tonumber(redis.call('GET', 'queue:bytes') or '0'), streams
end
