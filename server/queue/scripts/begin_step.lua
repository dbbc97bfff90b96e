#!lua flags=allow-oom
-- A worker is about to run a batch: records what is in it, since only these may be what it dies of, and tells which are still wanted.
-- ARGV: worker, its slot, msgpack of {'alone' or 'together', {job id…}}, '1' if an absent gw:<id> means a dead gateway, then id, deadline and gateway
-- of each job that is to be looked at. Returns {now ms, for each of these why it must not run or ''…}.
if call('HSET', 'suspects:' .. ARGV[1], ARGV[2], ARGV[3]) == 1 then call('EXPIRE', 'suspects:' .. ARGV[1], RECORD_TTL_S) end
local now = now_ms()
local answer = {now}
for i = 5, #ARGV, 3 do
  local job = {id = ARGV[i], deadline = tonumber(ARGV[i + 1]), gw = ARGV[i + 2]}
  answer[#answer + 1] = call('EXISTS', 'job:' .. job.id) == 0 and 'ended' or verdict(job, now, ARGV[4] == '1')
end
return answer
