-- needs: jobs queueing history records
-- Admits a client's job with a record: it outlives its gateway. All such jobs together hold at most half of the queue.
-- ARGV: max items, max bytes, max bytes of results, a row (recorded), then a row (enqueued) for each of its jobs.
-- Returns {status, id of the record, items, bytes}. Statuses: 'ok'; 'known': the same request came before under this key, and has that id;
-- 'conflict': another one did; 'full'; 'share': the half is full; 'results': there is no room for its result; 'late'; 'unstaged';
-- 'epoch': this Redis is another one than the gateway thinks, and its epoch stands in place of the id.

local max_items, max_bytes, max_results = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local now = now_ms()
local asked, at = read_recorded(ARGV, 4)
local jobs = {}
for i = 1, tonumber(asked.jobs) do jobs[i], at = read_enqueued(ARGV, at) end

redis.call('SET', 'epoch', asked.epoch, 'NX')
local epoch = redis.call('GET', 'epoch')
local id = asked.record
local key, idem = 'record:' .. id, 'idem:' .. asked.idem
local items, known = unfinished()
local bytes = tonumber(redis.call('GET', 'queue:bytes') or '0')

local function refuse(status)
  drop_staged(jobs)
  return {status, id, items, bytes}
end

if epoch ~= asked.epoch then return {'epoch', epoch, items, bytes} end
if redis.call('EXISTS', key) == 1 then return refuse('ok') end  -- a repeated call: the first answer was lost
if asked.idem ~= '' then
  local earlier = redis.call('GET', idem)
  local fingerprint = earlier and redis.call('HGET', 'record:' .. earlier, 'fingerprint')
  if fingerprint then
    id = earlier
    return refuse(fingerprint == asked.fingerprint and 'known' or 'conflict')
  end
end

local nbytes, bound = 0, tonumber(asked.bound)
for _, job in ipairs(jobs) do nbytes = nbytes + tonumber(job.nbytes) end
local deadline = tonumber(jobs[1].deadline_ms)
if deadline <= now then return refuse('late') end
if items + #jobs > max_items or bytes + nbytes > max_bytes then return refuse('full') end
local held_items, held_bytes, results = held(now)
if held_items + #jobs > max_items / 2 or held_bytes + nbytes > max_bytes / 2 then return refuse('share') end
if results + bound + RECORD_BYTES > max_results then return refuse('results') end
if not all_staged(jobs) then return {'unstaged', id, items, bytes} end

local stream = jobs[1].stream
local place = waiting_in(stream)
redis.call('HSET', key,
  'state', 'queued', 'task', asked.task, 'bundle', asked.bundle, 'digest', asked.digest, 'part', asked.part, 'plan', asked.plan,
  'priority', asked.priority, 'request_id', asked.request_id, 'prepare_ms', asked.prepare_ms, 'fingerprint', asked.fingerprint,
  'stream', stream, 'count', #jobs, 'nbytes', nbytes, 'bound', bound, 'ttl_ms', asked.ttl_ms, 'deadline_ms', deadline,
  'created_ms', now, 'place', place, 'placed_ms', now, 'ended', 0, 'results', 0)
if #jobs > 1 then redis.call('HSET', key, 'done', 0, 'total', #jobs, 'unit', 'images') end
if asked.idem ~= '' then
  redis.call('HSET', key, 'idem', asked.idem)
  redis.call('SET', idem, id)
end
for i, job in ipairs(jobs) do redis.call('HSET', key, 'entry:' .. i - 1, put(job, now, known)) end
local added = to_table(redis.call('XINFO', 'STREAM', stream))['entries-added']
if added then redis.call('HSET', key, 'ordinal', added - #jobs + 1) end
redis.call('ZADD', OPEN, deadline, open_member(id, {count = #jobs, nbytes = nbytes, bound = bound}))
redis.call('INCRBY', 'queue:bytes', nbytes)
tell(id, 'queued', cjson.encode({place = place}))
return {'ok', id, items + #jobs, bytes + nbytes}
