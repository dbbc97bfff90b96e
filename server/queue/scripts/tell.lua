-- needs: history
-- What a gateway has counted since the last time, added to the history. ARGV: name, amount, name, amount, …

local step = step_of(now_ms())
for i = 1, #ARGV, 2 do note(step, ARGV[i], tonumber(ARGV[i + 1])) end
