-- Makes sure that the work streams and their groups exist. KEYS: work streams.

for _, stream in ipairs(KEYS) do
  local made = redis.pcall('XGROUP', 'CREATE', stream, GROUP, 0, 'MKSTREAM')
  if made.err and not string.find(made.err, 'BUSYGROUP', 1, true) then return made end
end
return redis.status_reply('OK')
