-- Takes up to `room` jobs for a worker, the most urgent stream first, and looks at deadline, cancel and gateway of each.
-- Urgency is the time of a stream's next entry plus `step` for each priority below high: everything gets its turn.
-- KEYS: work streams. ARGV: consumer, room, step ms, '1' if an absent gw:<id> means a dead gateway, then each stream's rank (0 = high).
-- Returns {now ms, deliveries}.

local consumer, room, step, absence_counts = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4] == '1'
local MOST_DROPPED = 256
local now = now_ms()

-- When the next undelivered entry was added; nil if all are delivered. Without a group yet, none is.
local function next_ms(stream)
  local after = '-'
  local groups = redis.pcall('XINFO', 'GROUPS', stream)
  for _, flat in ipairs(groups) do
    local group = to_table(flat)
    if group.name == GROUP then after = '(' .. group['last-delivered-id'] end
  end
  local entry = redis.call('XRANGE', stream, after, '+', 'COUNT', 1)[1]
  return entry and added_ms(entry[1])
end

local waiting = {}
for i, stream in ipairs(KEYS) do
  if redis.call('XLEN', stream) > 0 then waiting[#waiting + 1] = {stream = stream, rank = tonumber(ARGV[4 + i])} end
end
if #waiting > 1 then
  local undelivered = {}
  for _, candidate in ipairs(waiting) do
    local added = next_ms(candidate.stream)
    if added then
      candidate.due = added + candidate.rank * step
      undelivered[#undelivered + 1] = candidate
    end
  end
  waiting = undelivered
  table.sort(waiting, function(a, b) return a.due < b.due end)
end

local function read(stream, count)
  local answer = redis.pcall('XREADGROUP', 'GROUP', GROUP, consumer, 'COUNT', count, 'STREAMS', stream, '>')
  if answer and answer.err then
    -- a stream that was written to before any worker served it, or a Redis that restarted empty
    redis.call('XGROUP', 'CREATE', stream, GROUP, 0, 'MKSTREAM')
    answer = redis.call('XREADGROUP', 'GROUP', GROUP, consumer, 'COUNT', count, 'STREAMS', stream, '>')
  end
  return answer and answer[1][2] or {}
end

local deliveries, dropped = {}, 0
for _, candidate in ipairs(waiting) do
  repeat
    if room == 0 or dropped >= MOST_DROPPED then return {now, deliveries} end
    local entries = read(candidate.stream, room)
    for _, entry in ipairs(entries) do
      local taken = delivery(candidate.stream, entry, now, absence_counts)
      deliveries[#deliveries + 1] = taken
      if taken[6] == '' then room = room - 1 else dropped = dropped + 1 end
    end
  until #entries == 0
end
return {now, deliveries}
