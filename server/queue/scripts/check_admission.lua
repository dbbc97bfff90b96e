#!lua flags=allow-oom
-- Checks whether claims would be admitted now, without writing. Claims that take their places count for the next ones.
-- ARGV: msgpack of AdmissionChecks. Returns an AdmissionAnswer (script.py).
local args, all, outcomes = cmsgpack.unpack(ARGV[1]), total_usage(), {}
local answer = {now_ms(), all.items, all.nbytes, all.work, outcomes}
for i, claim in ipairs(args.claims) do
  local refusal, rest = refusal_reason(args.bounds, all, claim)
  outcomes[i] = refusal or {'', 0, rest.items, rest.nbytes}
  if not refusal and claim.takes then
    for _, usage in ipairs({all, owner_usage(claim.owner), claim.low and owner_usage(LOW) or nil}) do
      usage.items, usage.nbytes = usage.items + claim.items, usage.nbytes + claim.nbytes
    end
  end
end
return answer
