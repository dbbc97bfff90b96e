#!lua flags=allow-oom
-- Would these be let in now? Writes nothing. Those that take what they ask for count for the next ones.
-- ARGV: msgpack of AdmissionChecks. Returns an AdmissionAnswer (script_rows.py).
local args, all, outcomes = cmsgpack.unpack(ARGV[1]), all_held(), {}
local answer = {now_ms(), all.items, all.nbytes, all.work, outcomes}
for i, claim in ipairs(args.claims) do
  local why, rest = refusal(args.bounds, all, claim)
  outcomes[i] = why or {'', 0, rest.items, rest.nbytes}
  if not why and claim.takes then
    for _, usage in ipairs({all, owned(claim.owner), claim.low and owned(LOW) or nil}) do
      usage.items, usage.nbytes = usage.items + claim.items, usage.nbytes + claim.nbytes
    end
  end
end
return answer
