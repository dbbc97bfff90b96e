#!lua flags=allow-oom
-- needs: items
-- Puts a worker's jobs back for another one, without a death being counted.
-- A job that runs in batches goes to the `…:back` stream of its own.
-- A job that must run alone stays in its stream under a consumer that never lives, so that it is claimed, alone again.
-- ARGV: consumer, then a row (handed_back) for each job. Returns how many were put back.

local function read_handed_back(at) return {stream = ARGV[at], entry = ARGV[at + 1], added_ms = ARGV[at + 2], alone = ARGV[at + 3]}, at + 4 end

local me, count = ARGV[1], 0
local at = 2
while at <= #ARGV do
  local job
  job, at = read_handed_back(at)
  if #call('XPENDING', job.stream, GROUP, job.entry, job.entry, 1, me) == 1 then
    if job.alone == '1' then
      call('XCLAIM', job.stream, GROUP, HANDED_BACK, 0, job.entry, 'JUSTID')
    else
      put_back(job.stream, job.entry, job.added_ms)
    end
    count = count + 1
  end
end
return count
