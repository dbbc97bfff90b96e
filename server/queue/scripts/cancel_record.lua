#!lua flags=allow-oom
-- Ends a client's job, or removes one that has ended. ARGV: msgpack of {id of the record, name of the API key that it must belong to or ''}.
-- Returns {epoch of this Redis or '', 1 or 0: whether there was one}.
local id, key_name = unpack(cmsgpack.unpack(ARGV[1]))
local epoch, record = call('GET', 'epoch') or '', record_at(id)
if not record or (call('HGET', 'record:' .. id, 'key_name') or '') ~= key_name then return {epoch, 0} end
check_counts()
check_records(now_ms())
if is_open(record) then
  add_event(id, 'cancelled', '{}')
  end_record(id, record, 'cancelled', now_ms())
  write_counts()
else
  drop_results(id, record)
  redis.call('DEL', P .. 'record:' .. id, P .. 'events:' .. id)
  if record.idem then call('DEL', 'idem:' .. record.idem) end
  delete_kept(table.concat({id, record.state == 'done' and record.results or 0, record.state}, ':'))
end
return {epoch, 1}
