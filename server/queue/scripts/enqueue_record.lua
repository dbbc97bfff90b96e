#!lua
-- Admits a client's job with a record: it outlives its gateway. All such jobs together hold at most half of the queue.
-- ARGV: msgpack of a RecordAdmissionCall (script_rows.py), msgpack of the task's plan, then messages.
-- Returns a RecordAdmitted (gateway/record_store.py).
local args = cmsgpack.unpack(ARGV[1])
local bounds, jobs, draft, wanted = args.bounds, args.jobs, args.draft, args.claim
for i, job in ipairs(jobs) do job.message = ARGV[2 + i] end
local now, id = now_ms(), args.record
local id_epoch = string.match(id, '^[^-]+')
local epoch = call('GET', 'epoch')
local key, idem = 'record:' .. id, 'idem:' .. draft.idem
local earlier = draft.idem ~= '' and call('GET', idem)
local fingerprint = earlier and call('HGET', 'record:' .. earlier, 'fingerprint')
local all = all_held()
check_records(now)
check_places(jobs)
expect('HLEN', key)
expect('SCARD', 'queues')
if not epoch then call('SET', 'epoch', id_epoch) end

local function refuse(status, why)
  drop_staged(jobs)
  return {status, id, now, -1, {}, why}
end

local function admitted(status) return {status, id, now, unpack(shown(id, args.names, now) or unreadable('record:' .. id))} end

if epoch and epoch ~= id_epoch then return {'epoch', epoch, now} end
if call('EXISTS', key) == 1 then  -- a repeated call: the first answer was lost
  drop_staged(jobs)
  return admitted('ok')
end
if fingerprint then
  id = earlier
  drop_staged(jobs)
  return fingerprint == draft.fingerprint and admitted('known') or {'conflict', id, now}
end
local deadline = jobs[1].deadline_ms
if deadline <= now then return refuse('late') end
local open, results = held(now)
local kept = {items = 0, nbytes = results + draft.bound}
local why = wanted.items > bounds.records.items and refused('async-items', 0, wanted, bounds.records)
  or wanted.nbytes > bounds.records.nbytes and refused('async-bytes', 0, wanted, bounds.records)
  or draft.bound > bounds.results.nbytes and refused('results-never', 0, {items = 0, nbytes = draft.bound}, bounds.results)
  or refusal(bounds, all, wanted)
  or exceeds(plus(open, wanted), bounds.records) and refused('async', all.work * math.min(1, #jobs / math.max(1, all.items)), all, bounds.records)
  or kept.nbytes > bounds.results.nbytes and refused('results', 0, kept, bounds.results)
if why then return refuse('refused', why) end
if not all_staged(jobs) then return refuse('unstaged') end
local stream, place = jobs[1].stream, waiting_in(jobs[1].stream)
call('HSET', key,
  'state', 'queued', 'plan', ARGV[2],
  'stream', stream, 'count', #jobs, 'nbytes', wanted.nbytes, 'ttl_ms', args.ttl_ms, 'deadline_ms', deadline,
  'created_ms', now, 'place', place, 'placed_ms', now, 'results', 0,
  'owner', wanted.owner, 'work_ms', math.ceil(wanted.work_ms / #jobs))
if #jobs > 1 then
  local turns = {}
  for i, job in ipairs(jobs) do turns[i] = {job.stream, job.behind_ms} end
  call('HSET', key, 'done', 0, 'total', draft.counted, 'unit', draft.counted_unit, 'turns', cmsgpack.pack(turns))
end
for name, value in pairs(draft) do if value ~= '' then call('HSET', key, name, value) end end
if draft.idem ~= '' then call('SET', idem, id) end
local last = exceeds(plus(all, wanted), bounds.long)
for _, job in ipairs(jobs) do put(job, now, last) end
local added = to_table(redis.call('XINFO', 'STREAM', P .. stream))['entries-added']
if added then call('HSET', key, 'ordinal', added - #jobs + 1) end
call('ZADD', OPEN, deadline, open_member(id, {count = #jobs, nbytes = wanted.nbytes, bound = draft.bound}))
tell(id, 'queued', cjson.encode({place = place}))
write_counts()
return admitted('ok')
