-- Tells how far jobs have come to the gateways that wait for them and understand it.
-- ARGV: a row (advanced) for each job. Returns to how many it was told.
-- An entry of a reply stream that starts with the field `progress` holds {job id, message, job id, message, …} behind it.

local outgoing, told = {}, 0
local at = 1
while at <= #ARGV do
  local job
  job, at = read_advanced(ARGV, at)
  local entry = outgoing[job.gateway] or {'progress', '1'}
  outgoing[job.gateway] = entry
  entry[#entry + 1] = job.job
  entry[#entry + 1] = job.message
end

for gateway, entry in pairs(outgoing) do
  local forms = redis.call('GET', 'gw:' .. gateway)
  if forms and string.find(forms, 'progress', 1, true) then
    redis.call('XADD', 'replies:' .. gateway, '*', unpack(entry))
    redis.call('EXPIRE', 'replies:' .. gateway, REPLIES_TTL_S)
    told = told + #entry / 2 - 1
  end
end
return told
