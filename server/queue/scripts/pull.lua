#!lua flags=allow-oom
-- Takes jobs for a worker, those of the most urgent stream first, up to its capacity, and checks the deadline, cancellation and gateway of each.
-- Urgency: the time at which a stream's next job was queued, plus the handicap of its priority, plus the ms by which it is behind its request.
-- ARGV: msgpack of {worker, whether absent keys mean death, {{stream, its handicap in ms, its pool}…, places of each pool}}. Returns {now ms,
-- rows (taken), {stream, number of jobs that still wait there, time at which the next of them was queued}…}.
local MAX_DROPPED = 256
local worker, absence_counts, capacity = unpack(cmsgpack.unpack(ARGV[1]))
local now, streams, places = now_ms(), unpack(capacity)

-- Returns the time at which the next undelivered job was queued, and by how much it is behind; nil if all are delivered. Before there is a group,
-- none is. A time in the future is from before the clock was set back, so the job is older than all others.
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
for _, row in ipairs(streams) do
  local stream, handicap, pool = unpack(row)
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
    -- the stream was written to before any worker served it, or Redis restarted empty
    create_group(stream)
    answer = redis.call('XREADGROUP', 'GROUP', GROUP, worker, 'COUNT', count, 'STREAMS', P .. stream, '>')
  end
  return answer and answer[1][2] or {}
end

local pulled, dropped = {}, 0
for _, candidate in ipairs(waiting) do
  local pool = candidate.pool
  while places[pool] > 0 and dropped < MAX_DROPPED and candidate.due ~= math.huge do
    local entries = read(candidate.stream, places[pool])
    for _, entry in ipairs(entries) do
      local runs
      pulled[#pulled + 1], runs = taken_row(candidate.stream, entry, now, absence_counts)
      if runs then places[pool] = places[pool] - 1 else dropped = dropped + 1 end
    end
    if #entries == 0 then break end
  end
end
local backlog = {}
for _, candidate in ipairs(waiting) do
  local since = places[candidate.pool] <= 0 and next_ms(candidate.stream)
  if since then backlog[#backlog + 1] = {candidate.stream, waiting_in(candidate.stream), since} end
end
return {now, pulled, backlog}
