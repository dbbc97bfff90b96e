#!lua flags=allow-oom
-- Reads a client's job. ARGV: msgpack of {id of the record, {names of its fields}}.
-- Returns {epoch of this Redis or '', place in its stream or -1, values of the fields (empty: there is none)}.
local id, names = unpack(cmsgpack.unpack(ARGV[1]))
return {call('GET', 'epoch') or '', unpack(record_row(id, names, now_ms()) or {-1, {}})}
