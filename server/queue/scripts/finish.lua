#!lua flags=allow-oom
-- Ends jobs of one bundle: the first to end one wins. Statistics count the winners only.
-- ARGV: bundle, worker, batch size (0 = no batch ran), most dead letters kept, msgpack of the Ended (rows.py) of each job, then its reply for each.
-- Returns 1 or 0 for each job: whether this call ended it.
local bundle, worker, batch_size, most_dead = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local jobs, now, ended = cmsgpack.unpack(ARGV[5]), now_ms(), {}

-- What jobs of records need besides.
local function of_records()
  -- parts
  check_records(now)
  return {check = record_at, settle = settle}
end

local keys, records = {}, nil
for i, job in ipairs(jobs) do keys[i] = P .. 'job:' .. job.job end
check_counts(unpack(keys))
for _, job in ipairs(jobs) do
  if job.stream ~= jobs[1].stream then expect('XLEN', job.stream) end  -- that one is written to first
  if job.dead_letter ~= '' then expect('XLEN', 'dead') end
  local record = record_of(job.job)
  if record then
    records = records or of_records()
    records.check(record)
    expect('STRLEN', job.stored)
  end
end

local answered, failed = 0, 0
local success_ns, fail_ns, queue_ns, infer_ns, output_ns, slowest_infer, slowest_output = 0, 0, 0, 0, 0, 0, 0
for i, job in ipairs(jobs) do
  job.reply = ARGV[5 + i]
  local record, index
  if records then record, index = record_of(job.job) end
  local dead = job.dead_letter ~= '' and call('XRANGE', job.stream, job.entry, job.entry)[1]  -- read before it goes
  ended[i] = call('XACK', job.stream, GROUP, job.entry)
  if ended[i] == 1 then
    call('XDEL', job.stream, job.entry)
    forget(job.job, sums[2 + i])
    if dead then
      local held = fields(dead)  -- a large message is not copied
      call('XADD', 'dead', 'MAXLEN', '~', most_dead, '*', 'id', job.job, 'stream', job.stream, 'worker', worker, 'reason', job.dead_letter,
        'bytes', held.bytes, 'job', held.message)
    end
    if record then records.settle(record, index, job, now) elseif job.reply ~= '' then reply(job.gateway, job.job, job.reply) end
    local batch_wait, infer, in_worker = job.batch_wait_ns, job.inference_ns, job.worker_ns
    local total, output = math.max((now - job.added_ms) * 1e6, in_worker), math.max(0, in_worker - batch_wait - infer)
    if job.outcome == 'fail' then
      failed, fail_ns = failed + 1, fail_ns + total
    elseif job.outcome ~= '' then
      answered, success_ns, queue_ns = answered + 1, success_ns + total, queue_ns + total - in_worker + batch_wait
      infer_ns, output_ns = infer_ns + infer, output_ns + output
      slowest_infer, slowest_output = math.max(slowest_infer, infer), math.max(slowest_output, output)
    end
  end
  if job.stored ~= '' and (record or ended[i] == 0) then call('DEL', job.stored) end  -- else its gateway reads it
end

write_counts()
send_replies()
if answered + failed > 0 then
  local ran, of_size = answered > 0 and batch_size > 0, 'batch:' .. batch_size .. ':'
  local counts = {
    fail_count = failed, fail_ns = fail_ns, success_count = answered, success_ns = success_ns, inference_count = answered,
    queue_count = answered, queue_ns = queue_ns, compute_input_count = answered, compute_infer_count = answered, compute_infer_ns = infer_ns,
    compute_output_count = answered, compute_output_ns = output_ns, execution_count = ran and 1 or 0, [of_size .. 'count'] = ran and 1 or 0,
    [of_size .. 'compute_infer_ns'] = slowest_infer, [of_size .. 'compute_output_ns'] = slowest_output,
  }
  -- As parts/history.lua adds them up: {bundle, counts, and where a batch ran now ms, counts of the history}.
  local batch = {bundle, counts, ran and now, {items = answered, batches = 1, batched = batch_size}}
  try('RPUSH', 'stats:batches', cmsgpack.pack(batch))
end
return ended
