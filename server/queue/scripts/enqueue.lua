#!lua
-- Admits the jobs of several requests: those of one request all or none. A job whose `job:<id>` exists is already in the queue and is skipped.
-- ARGV: msgpack of an AdmissionCall, then messages. Returns an AdmissionAnswer (script.py).
local args = cmsgpack.unpack(ARGV[1])
local bounds, all, now = args.bounds, total_usage(), now_ms()

local function admit(jobs, claim, again)
  if jobs[1].deadline_ms <= now then return {'late'} end
  local new = {}
  for _, job in ipairs(jobs) do if call('EXISTS', 'job:' .. job.job) == 0 then new[#new + 1] = job end end
  local refusal = #new > 0 and not again and refusal_reason(bounds, all, claim)
  if refusal then return refusal end
  if not all_staged(new) then return {'unstaged'} end
  local last = exceeds(plus(all, claim), bounds.long)
  for _, job in ipairs(new) do add_entry(job, now, last) end
  if #new > 0 then all.items, all.nbytes, all.work = all.items + claim.items, all.nbytes + claim.nbytes, all.work + claim.work_ms end
end

for _, request in ipairs(args.requests) do check_places(request.jobs) end
local outcomes, at = {}, 2
for i, request in ipairs(args.requests) do
  for _, job in ipairs(request.jobs) do job.message, at = ARGV[at], at + 1 end
  local ahead = request.place and waiting_in(request.jobs[1].stream) or 0
  outcomes[i] = admit(request.jobs, request.claim, request.again) or {'', 0, ahead}
  drop_staged(request.jobs)
end
write_counts()
return {now, all.items, all.nbytes, all.work, outcomes}
