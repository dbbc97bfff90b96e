-- Giving a job to the other workers without a death being counted. Needs jobs.

-- Moves an entry that a consumer holds to the `…:back` stream of its own, which wakes a waiting worker, with the time at which it was queued first.
local function put_back(stream, entry_id, added_ms)
  local entry = redis.call('XRANGE', stream, entry_id, entry_id)[1]
  redis.call('XACK', stream, GROUP, entry_id)
  if not entry then return end
  local again, back = to_table(entry[2]), string.gsub(stream, ':back$', '') .. ':back'
  again.at = added_ms
  local flat = {}
  for name, value in pairs(again) do
    flat[#flat + 1] = name
    flat[#flat + 1] = value
  end
  redis.call('XDEL', stream, entry_id)
  move_place(again.id or '', back, redis.call('XADD', back, '*', unpack(flat)))
  redis.call('SADD', 'queues', back)
end
