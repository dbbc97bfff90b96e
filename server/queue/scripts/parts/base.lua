-- What most scripts use. KEYS: what the names of all keys of the partition begin with; the clock is always Redis'.

local P = KEYS[1]
local function try(command, name, ...) return redis.pcall(command, P .. name, ...) end  -- an error is returned
local function call(command, name, ...)  -- an error names the key
  local answer = redis.pcall(command, P .. name, ...)
  if type(answer) == 'table' and answer.err then error({err = answer.err .. ', at ' .. name}) end
  return answer
end

-- Redis undoes nothing that a script has written before an error. So what others may have written under names of ours is read, or checked by
-- this, before the first write. `command` tells the size of a key of the right type.
local function expect(command, ...) for _, name in ipairs({...}) do call(command, name) end end

-- The error of a key of the right type that holds what no script of ours wrote.
local function unreadable(name, content) error({err = string.format('WRONGTYPE %s holds %q', name, string.sub(content or '', 1, 40))}) end
local GROUP = 'workers'
local LINGER_MS = 60000  -- how long a job's keys outlive its deadline
local REPLIES_TTL_S = 60
local RECORD_TTL_S = 3600  -- how long what a worker runs is known after its last sign of life

local function now_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- Flat {name, value, name, value} → table.
local function to_table(flat)
  local table = {}
  for i = 1, #flat, 2 do table[flat[i]] = flat[i + 1] end
  return table
end

-- A whole number as our own processes write them; nil for anything else, also for what Lua would take for one.
local function whole(text) return text and #text < 16 and string.match(text, '^%d+$') and tonumber(text) or nil end

-- Whether it is `who`'s turn: nobody has had one for `ms`. A turn that lasts longer than that began before the clock was set back.
local function take_turn(key, who, ms)
  if call('PTTL', key) > tonumber(ms) then call('DEL', key) end
  return call('SET', key, who, 'NX', 'PX', ms) and true or false
end
