-- What happens in each step of 5 s: a hash history:<step> of counts, kept a little longer than it is shown.

local STEP_MS, HISTORY_TTL_S = 5000, 960

local function step_of(ms) return math.floor(ms / STEP_MS) end

local function note(step, name, amount)
  local key = 'history:' .. string.format('%d', step)
  call('HINCRBY', key, name, string.format('%.0f', amount))
  call('EXPIRE', key, HISTORY_TTL_S)
end

-- What one call of finish.lua wrote down, added to the sums of its bundle and of the step in which it ended.
local function count_batch(batch, sums, steps)
  local bundle, batch_size, ended_ms, answered, failed, success_ns, fail_ns, queue_ns, infer_ns, output_ns, slowest_infer, slowest_output =
    unpack(batch)
  local of_bundle = sums[bundle] or {last = 0}
  sums[bundle] = of_bundle
  local function add(name, count, ns)
    if count == 0 then return end
    of_bundle[name .. '_count'] = (of_bundle[name .. '_count'] or 0) + count
    of_bundle[name .. '_ns'] = (of_bundle[name .. '_ns'] or 0) + ns
  end

  add('fail', failed, fail_ns)
  add('success', answered, success_ns)
  add('queue', answered, queue_ns)
  add('compute_input', answered, 0)
  add('compute_infer', answered, infer_ns)
  add('compute_output', answered, output_ns)
  if answered == 0 then return end
  of_bundle.inference_count = (of_bundle.inference_count or 0) + answered
  if batch_size == 0 then return end
  local function add_of_size(name, amount)
    local of_size = 'batch:' .. batch_size .. ':' .. name
    of_bundle[of_size] = (of_bundle[of_size] or 0) + amount
  end
  add_of_size('count', 1)
  add_of_size('compute_input_ns', 0)
  add_of_size('compute_infer_ns', slowest_infer)
  add_of_size('compute_output_ns', slowest_output)
  of_bundle.execution_count = (of_bundle.execution_count or 0) + 1
  of_bundle.last = math.max(of_bundle.last, ended_ms)
  local step = step_of(ended_ms)
  local of_step = steps[step] or {items = 0, batches = 0, batched = 0}
  steps[step] = of_step
  of_step.items, of_step.batches, of_step.batched = of_step.items + answered, of_step.batches + 1, of_step.batched + batch_size
end

-- Adds up the statistics of at most so many batches that have not been counted yet.
local function count_batches(most)
  local batches = call('LRANGE', 'stats:batches', 0, most - 1)
  if #batches == 0 then return end
  call('LTRIM', 'stats:batches', #batches, -1)
  local sums, steps = {}, {}
  for _, packed in ipairs(batches) do count_batch(cmsgpack.unpack(packed), sums, steps) end
  for step, counts in pairs(steps) do
    for name, amount in pairs(counts) do note(step, name, amount) end
  end
  for bundle, of_bundle in pairs(sums) do
    local key, last = 'stats:' .. bundle, of_bundle.last
    of_bundle.last = nil
    if last > 0 then call('HSET', key, 'last_inference', string.format('%.0f', last)) end
    for name, amount in pairs(of_bundle) do call('HINCRBY', key, name, string.format('%.0f', amount)) end
  end
end
