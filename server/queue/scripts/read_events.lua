#!lua flags=allow-oom
-- Events of several clients' jobs. ARGV: msgpack of {most events for each, {its record, the number of the last event that is known}…}.
-- Returns {epoch of this Redis or '', for each {state ('': there is no such record), entries…}}. Those for which the answer would
-- become too long are left out at its end.
-- Jobs that wait are told their place again when it has changed, at most every PLACE_EVERY_MS, while somebody reads.
local PLACE_EVERY_MS = 5000
local MOST_BYTES = 1024 * 1024
local now = now_ms()
local function tell_changed_place(id, record)
  if record.state ~= 'queued' or now < (tonumber(record.placed_ms) or now) + PLACE_EVERY_MS then return end
  call('HSET', 'record:' .. id, 'placed_ms', now)
  notice_start(id, record, now)
  local place = record.state == 'queued' and place_of(record)
  if not place or place == tonumber(record.place) then return end
  call('HSET', 'record:' .. id, 'place', place)
  tell(id, 'queued', cjson.encode({place = place}))
end

local most, positions = unpack(cmsgpack.unpack(ARGV[1]))
local answers, bytes, epoch = {}, 0, call('GET', 'epoch') or ''
for _, position in ipairs(positions) do record_at(position[1]) end
for _, position in ipairs(positions) do
  if bytes > MOST_BYTES then break end
  local id, after = unpack(position)
  local record, events = record_at(id), {}
  if record then
    tell_changed_place(id, record)
    local found = try('XRANGE', 'events:' .. id, '(' .. after .. '-0', '+', 'COUNT', most)
    events = found.err and {} or found  -- others may have written under this name
    for _, entry in ipairs(events) do for _, word in ipairs(entry[2]) do bytes = bytes + #word end end
  end
  answers[#answers + 1] = {record and record.state or '', events}
end
return {epoch, answers}
