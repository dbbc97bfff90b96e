-- Ends jobs of one bundle: the first to end one wins. Statistics count the winners only.
-- KEYS: stats:<bundle>. ARGV: worker, batch size (0 = no batch ran), most dead letters kept, then per job: stream, entry id, job id, gateway, bytes,
-- reply ('' = nobody waits), reason of a dead letter ('' = none), 'success' | 'fail' | '', ns of batch wait, inference, and worker in all.
-- Returns 1 or 0 for each job: whether this call ended it.

local statistics = KEYS[1]
local worker, batch_size, most_dead = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local now = now_ms()
local sums = {}

local function add(name, amount)
  sums[name] = (sums[name] or 0) + amount
end

local function add_duration(name, ns)
  add(name .. '_count', 1)
  add(name .. '_ns', math.max(0, ns))
end

local function count(outcome, entry_id, batch_wait, inference, in_worker)
  local total = math.max((now - added_ms(entry_id)) * 1e6, in_worker)
  add_duration(outcome, total)
  if outcome ~= 'success' then return end
  add('inference_count', 1)
  add_duration('queue', total - in_worker + batch_wait)
  add_duration('compute_input', 0)
  add_duration('compute_infer', inference)
  add_duration('compute_output', in_worker - batch_wait - inference)
end

-- A dead letter's fields, read before its entry goes.
local function letter(stream, entry_id, reason)
  local entry = redis.call('XRANGE', stream, entry_id, entry_id)[1]
  if not entry then return nil end
  local job = fields(entry)
  return {'id', job.id, 'stream', stream, 'worker', worker, 'reason', reason, 'job', message_of(job)}
end

local ended, slowest = {}, {inference = 0, output = 0}
for i = 4, #ARGV, 11 do
  local stream, entry_id, job_id, gateway, bytes = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4]
  local reply, reason, outcome = ARGV[i + 5], ARGV[i + 6], ARGV[i + 7]
  local batch_wait, inference, in_worker = tonumber(ARGV[i + 8]), tonumber(ARGV[i + 9]), tonumber(ARGV[i + 10])
  local dead = reason ~= '' and letter(stream, entry_id, reason)
  if remove(stream, entry_id, job_id, tonumber(bytes)) then
    if dead then redis.call('XADD', 'dead', 'MAXLEN', '~', most_dead, '*', unpack(dead)) end
    if reply ~= '' and redis.call('EXISTS', 'gw:' .. gateway) == 1 then
      redis.call('XADD', 'replies:' .. gateway, '*', 'id', job_id, 'reply', reply)
      redis.call('EXPIRE', 'replies:' .. gateway, REPLIES_TTL_S)
    end
    if outcome ~= '' then count(outcome, entry_id, batch_wait, inference, in_worker) end
    if outcome == 'success' then
      slowest.inference = math.max(slowest.inference, inference)
      slowest.output = math.max(slowest.output, in_worker - batch_wait - inference)
    end
    ended[#ended + 1] = 1
  else
    ended[#ended + 1] = 0
  end
end

if sums.inference_count and batch_size > 0 then
  add('execution_count', 1)
  add('batch:' .. batch_size .. ':count', 1)
  add('batch:' .. batch_size .. ':compute_input_ns', 0)
  add('batch:' .. batch_size .. ':compute_infer_ns', slowest.inference)
  add('batch:' .. batch_size .. ':compute_output_ns', slowest.output)
  redis.call('HSET', statistics, 'last_inference', string.format('%.0f', now))
end
for name, amount in pairs(sums) do redis.call('HINCRBY', statistics, name, string.format('%.0f', amount)) end
return ended
