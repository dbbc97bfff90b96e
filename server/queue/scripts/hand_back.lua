-- Puts a worker's jobs back for another one, without a death being counted.
-- A job that runs in batches goes to its bundle's high stream, which wakes a waiting worker and does not cost the job its place in the queue.
-- A job that must run alone stays in its stream under a consumer that never lives, so that it is claimed, alone again.
-- ARGV: consumer, then per job: stream, entry id, high stream, '1' if it must run alone. Returns how many were put back.

local me, count = ARGV[1], 0
for i = 2, #ARGV, 4 do
  local stream, entry_id, high = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  if #redis.call('XPENDING', stream, GROUP, entry_id, entry_id, 1, me) == 1 then
    if ARGV[i + 3] == '1' then
      redis.call('XCLAIM', stream, GROUP, HANDED_BACK, 0, entry_id, 'JUSTID')
    else
      local entry = redis.call('XRANGE', stream, entry_id, entry_id)[1]
      redis.call('XACK', stream, GROUP, entry_id)
      if entry then
        redis.call('XDEL', stream, entry_id)
        redis.call('XADD', high, '*', unpack(entry[2]))
        redis.call('SADD', 'queues', high)
      end
    end
    count = count + 1
  end
end
return count
