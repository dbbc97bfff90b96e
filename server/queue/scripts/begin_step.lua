#!lua flags=allow-oom
-- A worker is about to run a batch: records what is in it, since only these may be what it dies of, and tells which are still wanted.
-- ARGV: msgpack of {worker, slot, whether an absent gw:<id> means a dead gateway, {{id, deadline, gateway} of each job to check}}, msgpack of {'alone' or 'together', {job id…}}. Returns {now ms, {for each job why it must not run or ''…}}.
local worker, slot, absence_counts, jobs = unpack(cmsgpack.unpack(ARGV[1]))
if call('HSET', 'suspects:' .. worker, slot, ARGV[2]) == 1 then call('EXPIRE', 'suspects:' .. worker, RECORD_TTL_S) end
local now, dropped = now_ms(), {}
for _, one in ipairs(jobs) do
  local job = {id = one[1], deadline = one[2], gw = one[3]}
  dropped[#dropped + 1] = call('EXISTS', 'job:' .. job.id) == 0 and 'ended' or verdict(job, now, absence_counts)
end
return {now, dropped}
