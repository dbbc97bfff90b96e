#!lua flags=allow-oom
-- A worker is about to run a batch: records what is in it, since only these may be what it dies of, and tells which are still wanted.
-- ARGV: msgpack of a StepBegin, msgpack of {'alone' or 'together', {job id…}}. Returns {now ms, {for each job why it must not run or ''…}}.
local args = cmsgpack.unpack(ARGV[1])
if call('HSET', 'suspects:' .. args.worker, args.slot, ARGV[2]) == 1 then call('EXPIRE', 'suspects:' .. args.worker, RECORD_TTL_S) end
local now, dropped = now_ms(), {}
for _, one in ipairs(args.jobs) do
  local job = {id = one[1], deadline = one[2], gw = one[3]}
  dropped[#dropped + 1] = call('EXISTS', 'job:' .. job.id) == 0 and 'ended' or verdict(job, now, args.absence_counts)
end
return {now, dropped}
