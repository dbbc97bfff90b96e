-- What operators want loaded. Returns {number of the latest change, flat list of name and state}.

return {redis.call('GET', 'repository:revision') or '0', redis.call('HGETALL', 'repository')}
