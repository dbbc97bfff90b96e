-- What happens in each step of 5 s: a hash history:<step> of counts, kept a little longer than it is shown.

local STEP_MS, HISTORY_TTL_S = 5000, 960

local function step_of(ms) return math.floor(ms / STEP_MS) end

local function note(step, name, amount)
  local key = 'history:' .. string.format('%d', step)
  call('HINCRBY', key, name, string.format('%.0f', amount))
  call('EXPIRE', key, HISTORY_TTL_S)
end

-- Statistics of one batch, as finish.lua wrote them down, added to the sums of their bundle and of the step in which it ended.
local function count_batch(batch, sums, steps)
  local bundle, batch_size, ended_ms, jobs = unpack(batch)
  local of_bundle = sums[bundle] or {last = 0}
  sums[bundle] = of_bundle
  local function add(name, amount) of_bundle[name] = (of_bundle[name] or 0) + amount end
  local function add_duration(name, ns)
    add(name .. '_count', 1)
    add(name .. '_ns', math.max(0, ns))
  end

  local answered, slowest_inference, slowest_output = 0, 0, 0
  for _, job in ipairs(jobs) do
    local outcome, total, batch_wait, inference, in_worker = unpack(job)
    add_duration(outcome, total)
    if outcome == 'success' then
      local output = in_worker - batch_wait - inference
      answered = answered + 1
      add('inference_count', 1)
      add_duration('queue', total - in_worker + batch_wait)
      add_duration('compute_input', 0)
      add_duration('compute_infer', inference)
      add_duration('compute_output', output)
      slowest_inference, slowest_output = math.max(slowest_inference, inference), math.max(slowest_output, output)
    end
  end
  if answered > 0 and batch_size > 0 then
    add('execution_count', 1)
    add('batch:' .. batch_size .. ':count', 1)
    add('batch:' .. batch_size .. ':compute_input_ns', 0)
    add('batch:' .. batch_size .. ':compute_infer_ns', slowest_inference)
    add('batch:' .. batch_size .. ':compute_output_ns', slowest_output)
    of_bundle.last = math.max(of_bundle.last, ended_ms)
    local step = step_of(ended_ms)
    local of_step = steps[step] or {items = 0, batches = 0, batched = 0}
    steps[step] = of_step
    of_step.items = of_step.items + answered
    of_step.batches = of_step.batches + 1
    of_step.batched = of_step.batched + batch_size
  end
end

-- Adds up the statistics of at most so many batches that have not been counted yet.
local function count_batches(most)
  local batches = call('LRANGE', 'stats:uncounted', 0, most - 1)
  if #batches == 0 then return end
  call('LTRIM', 'stats:uncounted', #batches, -1)
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
