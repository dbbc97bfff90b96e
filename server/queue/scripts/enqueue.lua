#!lua
-- Admits the jobs of several requests; those of one request all or none. A job whose `job:<id>` exists is there already: nothing happens.
-- ARGV: msgpack of an AdmissionCall (script_rows.py), then messages.
-- Returns {items, bytes, a status for each request} with the load after it. Statuses: 'ok', followed by how many wait before its first job
-- if it wants to know; 'client', 'key', 'full' (see parts/admission.lua); 'late'; 'unstaged': a message that should have been written before is not there.
local args = cmsgpack.unpack(ARGV[1])
local bounds, all, now = args.bounds, all_held(), now_ms()

local function admit(jobs, again)
  if jobs[1].deadline_ms <= now then return 'late' end
  local new = {}
  for _, job in ipairs(jobs) do if call('EXISTS', 'job:' .. job.job) == 0 then new[#new + 1] = job end end
  local asked = asked_by(new)
  local why = #new > 0 and not again and refusal(bounds, all, asked)
  if why then return why end
  if not all_staged(new) then return 'unstaged' end
  local last = exceeds(all, asked, bounds.long)
  for _, job in ipairs(new) do put(job, now, last) end
  all.items, all.nbytes, all.work = all.items + asked.items, all.nbytes + asked.nbytes, all.work + asked.work
  return 'ok'
end

for _, request in ipairs(args.requests) do check_places(request.jobs) end
local statuses, at = {}, 2
for _, request in ipairs(args.requests) do
  for _, job in ipairs(request.jobs) do job.message, at = ARGV[at], at + 1 end
  local ahead = request.place and ' ' .. waiting_in(request.jobs[1].stream) or ''
  local status = admit(request.jobs, request.again)
  drop_staged(request.jobs)
  statuses[#statuses + 1] = status == 'ok' and status .. ahead or status
end
write_counts()
return {all.items, all.nbytes, statuses}
