-- What a record says of itself besides its fields. Needs jobs records.

-- Notices that a worker has taken one of a queued record's jobs: nobody writes that down where a job is one forward pass.
local function notice_start(id, record, now)
  if record.state ~= 'queued' then return end
  each_job(id, record, function(_, i)
    local entry = redis.call('HGET', 'record:' .. id, 'entry:' .. i)
    local pending = redis.pcall('XPENDING', record.stream, GROUP, entry, entry, 1)
    local runs = not pending.err and #pending == 1 and redis.call('EXISTS', 'worker:' .. pending[1][2]) == 1
    if runs then start(id, record, math.max(tonumber(record.created_ms), now - pending[1][3])) end
  end)
end

-- How many of its stream wait before it, from the counts of entries that were added and read; nil where Redis does not know.
local function place_of(id, record)
  local ordinal = tonumber(redis.call('HGET', 'record:' .. id, 'ordinal') or '')
  local groups = redis.pcall('XINFO', 'GROUPS', record.stream)
  if not ordinal or groups.err then return nil end
  for _, flat in ipairs(groups) do
    local group = to_table(flat)
    local read = group.name == GROUP and group['entries-read']
    if read then return math.max(0, math.min(ordinal - 1 - read, redis.call('XLEN', record.stream) - group.pending - 1)) end
  end
  return nil
end
