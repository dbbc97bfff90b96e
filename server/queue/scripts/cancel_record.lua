#!lua flags=allow-oom
-- Ends a client's job, or removes what is left of one that has ended. ARGV: msgpack of {id of the record, name of the API key that it must belong to or ''}.
-- Returns {epoch of this Redis or '', 1 or 0: whether there was one}.
local id, key_name = unpack(cmsgpack.unpack(ARGV[1]))
local epoch, record = call('GET', 'epoch') or '', record_at(id)
if not record or (call('HGET', 'record:' .. id, 'key_name') or '') ~= key_name then return {epoch, 0} end
check_counts()
check_records(now_ms())
if is_open(record) then
  tell(id, 'cancelled', '{}')
  close(id, record, 'cancelled', now_ms())
  write_counts()
else
  drop_results(id, record)
  redis.call('DEL', P .. 'record:' .. id, P .. 'events:' .. id)
  if record.idem then call('DEL', 'idem:' .. record.idem) end
  keep_no_longer(table.concat({id, record.state == 'done' and record.results or 0, record.state}, ':'))
end
return {epoch, 1}
