-- needs: jobs back dead
-- Whether dead workers have left jobs that they may have died of. What only waited in them is put back for everybody.
-- KEYS: work streams. ARGV: the worker that asks. Returns 1 or 0.

local found = 0
for _, stream in ipairs(KEYS) do
  if redis.call('XLEN', stream) > 0 then
    for _, dead in ipairs(dead_consumers(stream, ARGV[1])) do
      if #suspects(stream, dead) > 0 then found = 1 end
    end
  end
end
return found
