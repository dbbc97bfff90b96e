-- needs: jobs dead
-- Whether dead workers have left jobs behind. KEYS: work streams. ARGV: the worker that asks. Returns 1 or 0.

for _, stream in ipairs(KEYS) do
  if redis.call('XLEN', stream) > 0 and #dead_consumers(stream, ARGV[1]) > 0 then return 1 end
end
return 0
