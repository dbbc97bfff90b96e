#!lua flags=allow-oom
-- A client's job. ARGV: id of the record, then names of its fields.
-- Returns {epoch of this Redis or '', place in its stream or -1, values of the fields (empty: there is none)}.
return {call('GET', 'epoch') or '', unpack(shown(ARGV[1], {unpack(ARGV, 2)}, now_ms()) or {-1, {}})}
