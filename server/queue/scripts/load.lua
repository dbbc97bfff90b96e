-- needs: jobs loads
-- Returns {now ms, items, bytes, {stream, length, ms of the oldest entry or 0}…} of all unfinished jobs.

local items, bytes, streams = load()
return {now_ms(), items, bytes, streams}
