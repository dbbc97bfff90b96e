-- Sets what workers should do with a bundle. ARGV: name, 'loaded' | 'unloaded'. Returns the number of this change.

redis.call('HSET', 'repository', ARGV[1], ARGV[2])
return redis.call('INCR', 'repository:revision')
