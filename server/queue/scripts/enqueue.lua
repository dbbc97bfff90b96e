#!lua
-- needs: items admission
-- Admits the jobs of several requests; those of one request all or none. A job whose `job:<id>` exists is there already: nothing happens.
-- ARGV: a row (bounds), then for each request a row (request) and a row (enqueued) for each of its jobs.
-- Returns {items, bytes, a status for each request} with the load after it. Statuses: 'ok', followed by how many wait before its first job
-- if it wants to know; 'client', 'full' (see parts/admission.lua); 'late'; 'unstaged': a message that should have been written before is not there.

local function read_request(at) return {jobs = ARGV[at], again = ARGV[at + 1], place = ARGV[at + 2]}, at + 3 end

local bounds, at = read_bounds(1)
local now = now_ms()
local items, known = unfinished()
local all = all_held(items)

local function admit(jobs, again)
  for _, job in ipairs(jobs) do
    if tonumber(job.deadline_ms) <= now then return 'late' end
  end
  local new = not_queued(jobs)
  local asked = asked_by(new)
  local why = #new > 0 and not again and refusal(bounds, all, asked)
  if why then
    drop_staged(new)
    return why
  end
  if not all_staged(new) then return 'unstaged' end
  local last = in_last_eighth(bounds, all, asked)
  for _, job in ipairs(new) do put(job, now, known, last) end
  all.items, all.bytes, all.work = all.items + asked.items, all.bytes + asked.bytes, all.work + asked.work
  return 'ok'
end

local statuses = {}
while at <= #ARGV do
  local request, jobs = nil, {}
  request, at = read_request(at)
  for i = 1, tonumber(request.jobs) do jobs[i], at = read_enqueued(at) end
  local ahead = request.place == '1' and ' ' .. waiting_in(jobs[1].stream) or ''
  local status = admit(jobs, request.again == '1')
  statuses[#statuses + 1] = status == 'ok' and status .. ahead or status
end
write_counts()
return {all.items, all.bytes, statuses}
