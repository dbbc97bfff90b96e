#!lua flags=allow-oom
-- needs: items history records
-- Ends jobs of one bundle: the first to end one wins. Statistics count the winners only.
-- ARGV: bundle, worker, batch size (0 = no batch ran), most dead letters kept, msgpack of the Ended (rows.py) of each job, then its reply for each.
-- Returns 1 or 0 for each job: whether this call ended it.

local bundle, worker, batch_size, most_dead = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local now = now_ms()

local answered, failed = 0, 0
local success_ns, fail_ns, queue_ns, infer_ns, output_ns, slowest_infer, slowest_output = 0, 0, 0, 0, 0, 0, 0
local function tally(job)
  local batch_wait, infer, in_worker = job.batch_wait_ns, job.inference_ns, job.worker_ns
  local total = math.max((now - job.added_ms) * 1e6, in_worker)
  if job.outcome == 'fail' then
    failed, fail_ns = failed + 1, fail_ns + total
    return
  end
  local output = math.max(0, in_worker - batch_wait - infer)
  answered, success_ns, queue_ns = answered + 1, success_ns + total, queue_ns + total - in_worker + batch_wait
  infer_ns, output_ns = infer_ns + infer, output_ns + output
  slowest_infer, slowest_output = math.max(slowest_infer, infer), math.max(slowest_output, output)
end

-- The counts of this batch, as parts/history.lua adds them up: {bundle, counts, and where a batch ran now ms, counts of the history}.
local function counted()
  local ran, of_size = answered > 0 and batch_size > 0, 'batch:' .. batch_size .. ':'
  local counts = {
    fail_count = failed, fail_ns = fail_ns, success_count = answered, success_ns = success_ns, inference_count = answered,
    queue_count = answered, queue_ns = queue_ns, compute_input_count = answered, compute_infer_count = answered, compute_infer_ns = infer_ns,
    compute_output_count = answered, compute_output_ns = output_ns, execution_count = ran and 1 or 0, [of_size .. 'count'] = ran and 1 or 0,
    [of_size .. 'compute_infer_ns'] = slowest_infer, [of_size .. 'compute_output_ns'] = slowest_output,
  }
  return {bundle, counts, ran and now, {items = answered, batches = 1, batched = batch_size}}
end

-- A dead letter's fields, read before its entry goes.
local function letter(job)
  local entry = call('XRANGE', job.stream, job.entry, job.entry)[1]
  if not entry then return nil end
  local held = fields(entry)  -- a large message is not copied
  return {'id', job.job, 'stream', job.stream, 'worker', worker, 'reason', job.dead_letter, 'bytes', held.bytes, 'job', held.message}
end

local jobs, ended = cmsgpack.unpack(ARGV[5]), {}
local names = {}
for i, job in ipairs(jobs) do names[2 * i - 1], names[2 * i] = P .. 'job:' .. job.job, P .. 'gw:' .. job.gateway end
read_sums(unpack(names))
expect('SCARD', JOBS)
for i, job in ipairs(jobs) do
  known[job.job], living[job.gateway] = {string.match(sums[2 * i + 1] or '', KNOWN)}, sums[2 * i + 2] and true
  local _, _, owner, _, _, _, low = known_of(job.job)
  if owner and owner ~= NOBODY then owned(owner) end
  if low == '1' then owned(LOW) end
  if job.stream ~= jobs[1].stream then expect('XLEN', job.stream) end  -- that one is written to first
  if job.dead_letter ~= '' then expect('XLEN', 'dead') end
  local record = record_of(job.job)
  if record and record_at(record) then
    expect('HLEN', OWNERS)
    check_records(now)
    expect('STRLEN', job.stored)
  end
end

for i, job in ipairs(jobs) do
  job.reply = ARGV[5 + i]
  local record, index = record_of(job.job)
  local dead = job.dead_letter ~= '' and letter(job)
  ended[i] = call('XACK', job.stream, GROUP, job.entry)
  if ended[i] == 1 then
    call('XDEL', job.stream, job.entry)
    forget(job.job)
    if dead then call('XADD', 'dead', 'MAXLEN', '~', most_dead, '*', unpack(dead)) end
    if record then settle(record, index, job, now) elseif job.reply ~= '' then reply(job.gateway, job.job, job.reply) end
    if job.outcome ~= '' then tally(job) end
  end
  if job.stored ~= '' and (record or ended[i] == 0) then call('DEL', job.stored) end  -- else its gateway reads it
end

write_counts()
send_replies()
if answered + failed > 0 then try('RPUSH', 'stats:batches', cmsgpack.pack(counted())) end
return ended
