-- Functions of most scripts. KEYS: the prefix of all keys of the cell. The clock is always that of Redis.

local P = KEYS[1]
local function try(command, name, ...) return redis.pcall(command, P .. name, ...) end  -- returns errors
local function call(command, name, ...)  -- raises errors, with the name of the key
  local answer = redis.pcall(command, P .. name, ...)
  if type(answer) == 'table' and answer.err then error({err = answer.err .. ', at ' .. name}) end
  return answer
end

-- Redis does not undo what a script has written before an error. So keys that other programs may have written are read, or checked with this
-- function, before the first write. `command` returns the size of a key of the right type.
local function expect(command, ...) for _, name in ipairs({...}) do call(command, name) end end

-- Raises the error of a key of the right type whose content Opsin has not written.
local function unreadable(name, content) error({err = string.format('WRONGTYPE %s holds %q', name, string.sub(content or '', 1, 40))}) end
local GROUP = 'workers'
local KEY_GRACE_MS = 60000  -- time for which a job's keys outlive its deadline
local REPLIES_TTL_S = 60
local RECORD_TTL_S = 3600  -- time for which the jobs that a worker ran are known after its last heartbeat

local function now_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- Converts flat {name, value, name, value} to a table.
local function to_table(flat)
  local table = {}
  for i = 1, #flat, 2 do table[flat[i]] = flat[i + 1] end
  return table
end

-- Returns a whole number as Opsin writes it; nil for anything else, even if Lua would read it as a number.
local function whole_number(text) return text and #text < 16 and string.match(text, '^%d+$') and tonumber(text) or nil end

-- Returns whether `who` gets the turn: no one has had one for `ms`. A turn that lasts longer was taken before the clock was set back.
local function take_turn(key, who, ms)
  if call('PTTL', key) > tonumber(ms) then call('DEL', key) end
  return call('SET', key, who, 'NX', 'PX', ms) and true or false
end
