-- needs: taking jobs
-- Makes sure that the work streams and their groups exist. KEYS: work streams.

for _, stream in ipairs(KEYS) do make_group(stream) end
return redis.status_reply('OK')
