-- needs: jobs records
-- Events of several clients' jobs. ARGV: most events for each, then for each its record and the number of the last event that is known.
-- Returns {epoch of this Redis or '', for each {state ('': there is no such record), flat {number, name, data}…}}. Those for which the answer would
-- become too long are left out at its end.

local MOST_BYTES = 1024 * 1024

local most, answers = ARGV[1], {}
local bytes = 0
for at = 2, #ARGV, 2 do
  if bytes > MOST_BYTES then break end
  local id, after = ARGV[at], ARGV[at + 1]
  local record, events = record_at(id), {}
  if record then
    for _, entry in ipairs(redis.pcall('XRANGE', 'events:' .. id, '(' .. after .. '-0', '+', 'COUNT', most)) do
      local event = to_table(entry[2])
      if event.event and event.data then  -- else others have written it
        events[#events + 1] = string.match(entry[1], '^%d+')
        events[#events + 1] = event.event
        events[#events + 1] = event.data
        bytes = bytes + #event.data
      end
    end
  end
  answers[#answers + 1] = {record and record.state or '', events}
end
return {redis.call('GET', 'epoch') or '', answers}
