#!lua flags=allow-oom
-- Returns a worker's jobs to the queue, without counting a death. Cancelled jobs are removed from the queue.
-- A job that runs in batches moves to the `…:back` stream of its stream. One that must run alone stays, under a consumer that never lives, so that it is reclaimed and runs alone again.
-- ARGV: msgpack of {consumer, {row Returned…}}.
local consumer, jobs = unpack(cmsgpack.unpack(ARGV[1]))
check_counts()
expect('SCARD', 'queues')
for _, job in ipairs(jobs) do expect('XLEN', job.stream, (back_of(job.stream))) end
for _, job in ipairs(jobs) do
  if #try('XPENDING', job.stream, GROUP, job.entry, job.entry, 1, consumer) == 1 then  -- else another worker has it, or Redis has lost it
    if call('EXISTS', 'cancel:' .. job.job) == 1 then
      remove(job.stream, job.entry, job.job)
    elseif job.alone then
      call('XCLAIM', job.stream, GROUP, 'handed-back', 0, job.entry, 'JUSTID')
    else
      requeue(job.stream, job.entry)
    end
  end
end
write_counts()
return redis.status_reply('OK')
