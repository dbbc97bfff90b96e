#!lua
-- Admits a client's job with a record, so that it outlives its gateway. All such jobs together use at most half of the queue.
-- ARGV: msgpack of a RecordAdmissionCall (script.py), msgpack of the task's plan, then messages.
-- Returns a RecordAdmitted (gateway/record_store.py).
local args = cmsgpack.unpack(ARGV[1])
local bounds, jobs, draft, claim = args.bounds, args.jobs, args.draft, args.claim
for i, job in ipairs(jobs) do job.message = ARGV[2 + i] end
local now, id = now_ms(), args.record
local id_epoch = string.match(id, '^[^-]+')
local epoch = call('GET', 'epoch')
local key, idem = 'record:' .. id, 'idem:' .. draft.idem
local earlier = draft.idem ~= '' and call('GET', idem)
local fingerprint = earlier and call('HGET', 'record:' .. earlier, 'fingerprint')
local all = total_usage()
check_records(now)
check_places(jobs)
expect('HLEN', key)
expect('SCARD', 'queues')
if not epoch then call('SET', 'epoch', id_epoch) end

local function refuse(status, refusal)
  drop_staged(jobs)
  return {status, id, now, -1, {}, refusal}
end

local function admission_row(status) return {status, id, now, unpack(record_row(id, args.names, now) or unreadable('record:' .. id))} end

if epoch and epoch ~= id_epoch then return {'epoch', epoch, now} end
if call('EXISTS', key) == 1 then  -- a repeated call: the first answer was lost
  drop_staged(jobs)
  return admission_row('ok')
end
if fingerprint then
  id = earlier
  drop_staged(jobs)
  return fingerprint == draft.fingerprint and admission_row('known') or {'conflict', id, now}
end
local deadline = jobs[1].deadline_ms
if deadline <= now then return refuse('late') end
local open, results = open_usage(now)
local reserved = {items = 0, nbytes = results + draft.bound}
local refusal = claim.items > bounds.records.items and refusal_row('async-items', 0, claim, bounds.records)
  or claim.nbytes > bounds.records.nbytes and refusal_row('async-bytes', 0, claim, bounds.records)
  or draft.bound > bounds.results.nbytes and refusal_row('results-never', 0, {items = 0, nbytes = draft.bound}, bounds.results)
  or refusal_reason(bounds, all, claim)
  or exceeds(plus(open, claim), bounds.records) and refusal_row('async', all.work * math.min(1, #jobs / math.max(1, all.items)), all, bounds.records)
  or reserved.nbytes > bounds.results.nbytes and refusal_row('results', 0, reserved, bounds.results)
if refusal then return refuse('refused', refusal) end
if not all_staged(jobs) then return refuse('unstaged') end
local stream, place = jobs[1].stream, waiting_in(jobs[1].stream)
call('HSET', key,
  'state', 'queued', 'plan', ARGV[2],
  'stream', stream, 'count', #jobs, 'nbytes', claim.nbytes, 'ttl_ms', args.ttl_ms, 'deadline_ms', deadline,
  'created_ms', now, 'place', place, 'placed_ms', now, 'results', 0,
  'owner', claim.owner, 'work_ms', math.ceil(claim.work_ms / #jobs))
if #jobs > 1 then
  local turns = {}
  for i, job in ipairs(jobs) do turns[i] = {job.stream, job.behind_ms} end
  call('HSET', key, 'done', 0, 'total', draft.counted, 'unit', draft.counted_unit, 'turns', cmsgpack.pack(turns))
end
for name, value in pairs(draft) do if value ~= '' then call('HSET', key, name, value) end end
if draft.idem ~= '' then call('SET', idem, id) end
local last = exceeds(plus(all, claim), bounds.long)
for _, job in ipairs(jobs) do add_entry(job, now, last) end
local added = to_table(redis.call('XINFO', 'STREAM', P .. stream))['entries-added']
if added then call('HSET', key, 'ordinal', added - #jobs + 1) end
call('ZADD', OPEN, deadline, open_member(id, {count = #jobs, nbytes = claim.nbytes, bound = draft.bound}))
add_event(id, 'queued', cjson.encode({place = place}))
write_counts()
return admission_row('ok')
