-- needs: jobs queueing
-- Admits the jobs of several requests; those of one request all or none. A job whose `job:<id>` exists is there already: nothing happens.
-- ARGV: max items, max bytes, then for each request a row (request) and a row (enqueued) for each of its jobs.
-- Returns {items, bytes, a status for each request} with the load after it. Statuses: 'ok', followed by how many wait before its first job
-- if it wants to know; 'full'; 'late'; 'unstaged': a message that should have been written before is not there.

local max_items, max_bytes = tonumber(ARGV[1]), tonumber(ARGV[2])
local now = now_ms()
local items, known = unfinished()
local bytes = tonumber(redis.call('GET', 'queue:bytes') or '0')

local function admit(jobs, again)
  for _, job in ipairs(jobs) do
    if tonumber(job.deadline_ms) <= now then return 'late' end
  end
  local new, new_bytes = not_queued(jobs)
  if #new > 0 and not again and (items + #new > max_items or bytes + new_bytes > max_bytes) then
    drop_staged(new)
    return 'full'
  end
  if not all_staged(new) then return 'unstaged' end
  for _, job in ipairs(new) do put(job, now, known) end
  items, bytes = items + #new, bytes + new_bytes
  return 'ok'
end

local before, statuses, at = bytes, {}, 3
while at <= #ARGV do
  local request, jobs = nil, {}
  request, at = read_request(ARGV, at)
  for i = 1, tonumber(request.jobs) do jobs[i], at = read_enqueued(ARGV, at) end
  local ahead = request.place == '1' and ' ' .. waiting_in(jobs[1].stream) or ''
  local status = admit(jobs, request.again == '1')
  statuses[#statuses + 1] = status == 'ok' and status .. ahead or status
end
if bytes > before then redis.call('INCRBY', 'queue:bytes', bytes - before) end
return {items, bytes, statuses}
