-- Stands around a script that is called again after an error of a key (server/queue/resp.py): the error names that key.
local plain, at = redis, ''
local redis = setmetatable({call = function(command, ...)
  for _, word in ipairs({...}) do if string.sub(word, 1, #KEYS[1]) == KEYS[1] then at = string.sub(word, #KEYS[1] + 1) break end end
  return plain.call(command, ...)
end}, {__index = plain})
local ended, answer = pcall(function()
-- script
end)
if ended then return answer end
error({err = answer .. ', at ' .. at})
