#!lua flags=allow-oom
-- Takes jobs for a worker, the most urgent stream first, as many as their places allow, and looks at deadline, cancel and gateway of each.
-- Urgency: the time at which a stream's next job was queued, plus the handicap of its priority, plus by how much it is behind its request.
-- ARGV: msgpack of {worker, whether absent keys mean death, {{stream, its handicap in ms, its pool}…, places of each pool}}. Returns {now ms,
-- rows (taken), {stream, how many still wait there, when the next of them was queued}…}.
local MOST_DROPPED = 256
local worker, absence_counts, capacity = unpack(cmsgpack.unpack(ARGV[1]))
local now, streams, places = now_ms(), unpack(capacity)

-- When the next undelivered job was queued, and by how much it is behind; nil if all are delivered. Without a group yet, none is. What comes from
-- the future was queued before the clock was set back, so before everything else.
local function next_ms(stream)
  local after = '-'
  for _, flat in ipairs(redis.pcall('XINFO', 'GROUPS', P .. stream)) do
    local group = to_table(flat)
    if group.name == GROUP then after = '(' .. group['last-delivered-id'] end
  end
  local entry = call('XRANGE', stream, after, '+', 'COUNT', 1)[1]
  if not entry then return nil, 0 end
  local job = fields(entry)
  return job.added <= now and job.added or 0, job.behind
end

local waiting = {}
for _, wanted in ipairs(streams) do
  local stream, handicap, pool = unpack(wanted)
  if places[pool] > 0 and call('XLEN', stream) > 0 then waiting[#waiting + 1] = {stream = stream, handicap = handicap, pool = pool} end
end
if #waiting > 1 then
  for _, candidate in ipairs(waiting) do
    local added, behind = next_ms(candidate.stream)
    candidate.due = (added or math.huge) + behind + candidate.handicap
  end
  table.sort(waiting, function(a, b) return a.due < b.due end)
end

local function read(stream, count)
  local answer = redis.pcall('XREADGROUP', 'GROUP', GROUP, worker, 'COUNT', count, 'STREAMS', P .. stream, '>')
  if answer and answer.err then
    -- a stream that was written to before any worker served it, or a Redis that restarted empty
    make_group(stream)
    answer = redis.call('XREADGROUP', 'GROUP', GROUP, worker, 'COUNT', count, 'STREAMS', P .. stream, '>')
  end
  return answer and answer[1][2] or {}
end

local pulled, dropped = {}, 0
for _, candidate in ipairs(waiting) do
  local pool = candidate.pool
  while places[pool] > 0 and dropped < MOST_DROPPED and candidate.due ~= math.huge do
    local entries = read(candidate.stream, places[pool])
    for _, entry in ipairs(entries) do
      local runs
      pulled[#pulled + 1], runs = taken(candidate.stream, entry, now, absence_counts)
      if runs then places[pool] = places[pool] - 1 else dropped = dropped + 1 end
    end
    if #entries == 0 then break end
  end
end
local left = {}
for _, candidate in ipairs(waiting) do
  local since = places[candidate.pool] <= 0 and next_ms(candidate.stream)
  if since then left[#left + 1] = {candidate.stream, waiting_in(candidate.stream), since} end
end
return {now, pulled, left}
