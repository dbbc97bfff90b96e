-- needs: jobs loads
-- Returns {now ms, items, bytes, rows (stream_load), ms of work, flat {owner, what it holds}…} of all unfinished jobs.

return {now_ms(), load()}
