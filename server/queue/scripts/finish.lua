#!lua flags=allow-oom
-- Ends jobs of one bundle, and replies to their gateways.
-- ARGV: msgpack of a BatchEnd, then the reply to each job. Returns 1 or 0 for each: whether this call ended it.
local batch = read_finished()
local ended = end_jobs(batch, now_ms(), function(job) if job.reply ~= '' then reply(job.gateway, job.job, job.reply) end end)
send_replies()
return ended
