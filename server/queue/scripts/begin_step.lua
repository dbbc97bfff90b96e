#!lua flags=allow-oom
-- needs: items taking
-- A worker is about to run a batch: records what is in it, since only these may be what it dies of, and tells which must not run.
-- ARGV: worker, its slot, '1' if the job runs alone, '1' if an absent gw:<id> means a dead gateway, then a row (candidate) for each job.
-- Returns {now ms, why each must not run, or ''}.

local function read_candidate(at) return {job = ARGV[at], gateway = ARGV[at + 1], deadline_ms = ARGV[at + 2]}, at + 3 end

local worker, slot, alone, absence_counts = ARGV[1], ARGV[2], ARGV[3] == '1', ARGV[4] == '1'
local now = now_ms()
local verdicts, running = {}, {}
local at = 5
while at <= #ARGV do
  local job
  job, at = read_candidate(at)
  local why = verdict({id = job.job, gw = job.gateway, deadline = tonumber(job.deadline_ms)}, now, absence_counts)
  -- somebody else has ended it, as after this worker was taken for dead: its answer would be dropped
  if call('EXISTS', 'job:' .. job.job) == 0 then why = 'ended' end
  verdicts[#verdicts + 1] = why
  if why == '' then running[#running + 1] = job.job end
end
call('HSET', 'suspects:' .. worker, slot, cmsgpack.pack({alone and 'alone' or 'together', running}))
call('EXPIRE', 'suspects:' .. worker, RECORD_TTL_S)
return {now, verdicts}
