#!lua flags=allow-oom
-- Records the jobs of a batch that a worker is about to run, the only ones that can be to blame if it dies, and returns which must not run.
-- ARGV: msgpack of {worker, slot, whether an absent gw:<id> means a dead gateway, {{id, deadline, gateway} of each job to check}}, msgpack of {'alone' or 'together', {job id…}}. Returns {now ms, {for each job why it must not run or ''…}}.
local worker, slot, absence_counts, jobs = unpack(cmsgpack.unpack(ARGV[1]))
if call('HSET', 'suspects:' .. worker, slot, ARGV[2]) == 1 then call('EXPIRE', 'suspects:' .. worker, RECORD_TTL_S) end
local now, dropped = now_ms(), {}
for _, one in ipairs(jobs) do
  local job = {id = one[1], deadline = one[2], gw = one[3]}
  dropped[#dropped + 1] = call('EXISTS', 'job:' .. job.id) == 0 and 'ended' or drop_reason(job, now, absence_counts)
end
return {now, dropped}
