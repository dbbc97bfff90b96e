-- needs: holdings jobs history records
-- Ends jobs of one bundle: the first to end one wins. Statistics count the winners only.
-- ARGV: bundle, worker, batch size (0 = no batch ran), most dead letters kept, then a row (ended) for each job.
-- Returns 1 or 0 for each job: whether this call ended it.

local bundle, worker, batch_size, most_dead = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local now = now_ms()
local counted = {}

local function count(job)
  local batch_wait, inference, in_worker = tonumber(job.batch_wait_ns), tonumber(job.inference_ns), tonumber(job.worker_ns)
  local total = math.max((now - tonumber(job.added_ms)) * 1e6, in_worker)
  counted[#counted + 1] = {job.outcome, total, batch_wait, inference, in_worker}
end

-- A dead letter's fields, read before its entry goes.
local function letter(job)
  local entry = redis.call('XRANGE', job.stream, job.entry, job.entry)[1]
  if not entry then return nil end
  local held = fields(entry)  -- a large message is not copied
  return {'id', job.job, 'stream', job.stream, 'worker', worker, 'reason', job.dead_letter, 'bytes', held.bytes, 'job', held.message}
end

-- One entry for all replies of a gateway, {job id, reply, job id, reply, …}; one for each where the gateway does not understand that.
local function send(gateway, replies)
  local forms = redis.call('GET', 'gw:' .. gateway)
  if not forms then return end
  local stream = 'replies:' .. gateway
  if string.find(forms, 'batched-replies', 1, true) then
    redis.call('XADD', stream, '*', unpack(replies))
  else
    for i = 1, #replies, 2 do redis.call('XADD', stream, '*', 'id', replies[i], 'reply', replies[i + 1]) end
  end
  redis.call('EXPIRE', stream, REPLIES_TTL_S)
end

local outgoing = {}
local function reply(job)
  if job.reply == '' then return end
  local replies = outgoing[job.gateway] or {}
  outgoing[job.gateway] = replies
  replies[#replies + 1] = job.job
  replies[#replies + 1] = job.reply
end

local ended = {}
local i, at = 0, 5
while at <= #ARGV do
  local job
  job, at = read_ended(ARGV, at)
  i = i + 1
  local dead = job.dead_letter ~= '' and letter(job)
  ended[i] = 0
  if remove(job.stream, job.entry, job.job) then
    ended[i] = 1
    if dead then redis.call('XADD', 'dead', 'MAXLEN', '~', most_dead, '*', unpack(dead)) end
    local record, index = record_of(job.job)
    if record then settle(record, index, job, now) else reply(job) end
    if job.outcome ~= '' then count(job) end
  elseif job.stored ~= '' then
    redis.call('DEL', job.stored)
  end
end

write_counts()
for gateway, replies in pairs(outgoing) do send(gateway, replies) end

-- One write here; whoever reads the statistics, and each worker once a second, adds it up (see parts/counting.lua).
if #counted > 0 then redis.call('RPUSH', 'stats:uncounted', cmsgpack.pack({bundle, batch_size, now, counted})) end
return ended
