-- The end of a batch's jobs. A job may be ended several times; only the first time counts, in the statistics, too.

-- Returns a BatchEnd (script.py) with the reply to each of its jobs. After it, ending the jobs does not raise an error.
local function read_finished()
  local batch, keys = cmsgpack.unpack(ARGV[1]), {}
  for i, job in ipairs(batch.jobs) do keys[i], job.reply = P .. 'job:' .. job.job, ARGV[1 + i] end
  check_counts(unpack(keys))
  for i, job in ipairs(batch.jobs) do
    if i > 1 and job.stream ~= batch.jobs[1].stream then expect('XLEN', job.stream) end  -- the first stream is written to first
    if job.dead_letter ~= '' then expect('XLEN', 'dead') end
  end
  return batch
end

local function add_dead_letter(job, entry, batch)
  local queued = fields(entry)  -- a large message is not copied
  call('XADD', 'dead', 'MAXLEN', '~', batch.most_dead, '*', 'id', job.job, 'stream', job.stream, 'worker', batch.worker,
    'reason', job.dead_letter, 'bytes', queued.bytes, 'job', queued.message)
end

-- Ends jobs, and calls `deliver` with each one that had not ended before. Returns 1 or 0 for each job: whether this call ended it.
local function end_jobs(batch, now, deliver)
  local ended, answered, failed = {}, 0, 0
  local success_ns, fail_ns, queue_ns, infer_ns, output_ns, slowest_infer, slowest_output = 0, 0, 0, 0, 0, 0, 0
  for i, job in ipairs(batch.jobs) do
    local dead = job.dead_letter ~= '' and call('XRANGE', job.stream, job.entry, job.entry)[1]  -- read before it is deleted
    ended[i] = call('XACK', job.stream, GROUP, job.entry)
    if ended[i] == 1 then
      call('XDEL', job.stream, job.entry)
      release_job(job.job, sums[2 + i])
      if dead then add_dead_letter(job, dead, batch) end
      deliver(job)
      local batch_wait, infer, in_worker = job.batch_wait_ns, job.inference_ns, job.worker_ns
      local total, output = math.max((now - job.added_ms) * 1e6, in_worker), math.max(0, in_worker - batch_wait - infer)
      if job.outcome == 'fail' then
        failed, fail_ns = failed + 1, fail_ns + total
      elseif job.outcome ~= '' then
        answered, success_ns, queue_ns = answered + 1, success_ns + total, queue_ns + total - in_worker + batch_wait
        infer_ns, output_ns = infer_ns + infer, output_ns + output
        slowest_infer, slowest_output = math.max(slowest_infer, infer), math.max(slowest_output, output)
      end
    elseif job.stored ~= '' then
      call('DEL', job.stored)
    end
  end
  write_counts()
  if answered + failed == 0 then return ended end
  local ran, size = answered > 0 and batch.size > 0, batch.size
  local of_size, runs = 'batch:' .. size .. ':', ran and not batch.is_counted and 1 or 0
  local counts = {
    fail_count = failed, fail_ns = fail_ns, success_count = answered, success_ns = success_ns, inference_count = answered,
    queue_count = answered, queue_ns = queue_ns, compute_input_count = answered, compute_infer_count = answered, compute_infer_ns = infer_ns,
    compute_output_count = answered, compute_output_ns = output_ns, execution_count = runs, [of_size .. 'count'] = runs,
    [of_size .. 'compute_infer_ns'] = runs * slowest_infer, [of_size .. 'compute_output_ns'] = runs * slowest_output,
  }
  -- The format that `count_batches` reads: {bundle, counts, now ms if a batch ran, counts of the history}.
  local history = {items = answered, batches = runs, batched = runs * size}
  try('RPUSH', 'stats:batches', cmsgpack.pack({batch.bundle, counts, ran and now, history}))
  return ended
end
