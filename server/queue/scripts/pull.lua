-- needs: jobs taking
-- Takes up to `room` jobs for a worker, the most urgent stream first, and looks at deadline, cancel and gateway of each.
-- Urgency is the time at which a stream's next job was queued plus the handicap of its priority: everything gets its turn.
-- KEYS: work streams. ARGV: consumer, room, '1' if an absent gw:<id> means a dead gateway, then each stream's handicap in ms.
-- Returns {now ms, rows (taken)}.

local consumer, room, absence_counts = ARGV[1], tonumber(ARGV[2]), ARGV[3] == '1'
local MOST_DROPPED = 256
local now = now_ms()

-- When the next undelivered job was queued; nil if all are delivered. Without a group yet, none is.
local function next_ms(stream)
  local after = '-'
  local groups = redis.pcall('XINFO', 'GROUPS', stream)
  for _, flat in ipairs(groups) do
    local group = to_table(flat)
    if group.name == GROUP then after = '(' .. group['last-delivered-id'] end
  end
  local entry = redis.call('XRANGE', stream, after, '+', 'COUNT', 1)[1]
  return entry and fields(entry).added
end

local waiting = {}
for i, stream in ipairs(KEYS) do
  if redis.call('XLEN', stream) > 0 then waiting[#waiting + 1] = {stream = stream, handicap = tonumber(ARGV[3 + i])} end
end
if #waiting > 1 then
  local undelivered = {}
  for _, candidate in ipairs(waiting) do
    local added = next_ms(candidate.stream)
    if added then
      candidate.due = added + candidate.handicap
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
    make_group(stream)
    answer = redis.call('XREADGROUP', 'GROUP', GROUP, consumer, 'COUNT', count, 'STREAMS', stream, '>')
  end
  return answer and answer[1][2] or {}
end

local pulled, dropped = {}, 0
for _, candidate in ipairs(waiting) do
  repeat
    if room == 0 or dropped >= MOST_DROPPED then return {now, pulled} end
    local entries = read(candidate.stream, room)
    for _, entry in ipairs(entries) do
      local runs
      pulled[#pulled + 1], runs = taken(candidate.stream, entry, now, absence_counts)
      if runs then room = room - 1 else dropped = dropped + 1 end
    end
  until #entries == 0
end
return {now, pulled}
