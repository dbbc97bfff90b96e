#!lua flags=allow-oom
-- needs: items history records
-- A client's job. ARGV: id of the record, then names of its fields.
-- Returns {epoch of this Redis or '', place in its stream or -1, values of the fields (empty: there is none)}.

local id = ARGV[1]
local epoch = call('GET', 'epoch') or ''
local record = record_at(id)
if not record then return {epoch, -1, {}} end
notice_start(id, record, now_ms())
local place = record.state == 'queued' and place_of(record) or -1
return {epoch, place, call('HMGET', 'record:' .. id, unpack(ARGV, 2))}
