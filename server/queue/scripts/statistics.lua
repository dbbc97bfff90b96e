-- needs: history counting
-- What has been counted for a bundle up to now. ARGV: bundle. Returns a flat list of names and numbers.

count_batches(redis.call('LLEN', 'stats:uncounted'))
return redis.call('HGETALL', 'stats:' .. ARGV[1])
