#!lua flags=allow-oom
-- Returns events of several clients' jobs. ARGV: msgpack of {max events for each, {its record, number of the last known event}…}.
-- Returns {epoch of this Redis or '', for each {state, '' if there is no such record, entries…}}. If the answer becomes too long, the last
-- ones are left out.
-- A waiting job gets an event when its place has changed, at most every PLACE_EVERY_MS, while a client reads.
local PLACE_EVERY_MS = 5000
local MAX_BYTES = 1024 * 1024
local now = now_ms()
local function add_place_event(id, record)
  if record.state ~= 'queued' or now < (tonumber(record.placed_ms) or now) + PLACE_EVERY_MS then return end
  call('HSET', 'record:' .. id, 'placed_ms', now)
  detect_start(id, record, now)
  local place = record.state == 'queued' and place_of(record)
  if not place or place == tonumber(record.place) then return end
  call('HSET', 'record:' .. id, 'place', place)
  add_event(id, 'queued', cjson.encode({place = place}))
end

local max_events, positions = unpack(cmsgpack.unpack(ARGV[1]))
local answers, bytes, epoch = {}, 0, call('GET', 'epoch') or ''
for _, position in ipairs(positions) do record_at(position[1]) end
for _, position in ipairs(positions) do
  if bytes > MAX_BYTES then break end
  local id, after = unpack(position)
  local record, events = record_at(id), {}
  if record then
    add_place_event(id, record)
    local found = try('XRANGE', 'events:' .. id, '(' .. after .. '-0', '+', 'COUNT', max_events)
    events = found.err and {} or found  -- another program may have written the key
    for _, entry in ipairs(events) do for _, word in ipairs(entry[2]) do bytes = bytes + #word end end
  end
  answers[#answers + 1] = {record and record.state or '', events}
end
return {epoch, answers}
