-- What every script that writes a partition begins with: is what stands here what the writer believes to stand here?
--
-- KEYS: the layout, the checkpoint
-- ARGV: the number of partitions, the checkpoint's version ('' where there must be none),
--       the number of seen pieces, and for each piece its key and its length
local function differs()
  local layout = redis.call('GET', KEYS[1])
  if layout ~= ARGV[1] then return {'layout', layout or ''} end
  if ARGV[2] == '' then
    if redis.call('EXISTS', KEYS[2]) == 1 then return {'overtaken'} end
  elseif redis.call('HGET', KEYS[2], 'version') ~= ARGV[2] then
    return {'overtaken'}
  end
  local lost = {'seen'}
  for piece = 1, tonumber(ARGV[3]) do
    if redis.call('STRLEN', ARGV[2 * piece + 2]) ~= tonumber(ARGV[2 * piece + 3]) then
      lost[#lost + 1] = piece
    end
  end
  if #lost > 1 then return lost end
end

local difference = differs()
if difference then return difference end

-- The next argument that nobody has looked at.
local at = 4 + 2 * tonumber(ARGV[3])

-- Calls a command with the next `count` arguments, in parts that fit Lua's stack; even parts, for pairs must not be torn.
-- Each part is for `key`, where there is one.
local function call(command, count, key)
  local last = at + count - 1
  while at <= last do
    local upto = math.min(at + 1999, last)
    if key then
      redis.call(command, key, unpack(ARGV, at, upto))
    else
      redis.call(command, unpack(ARGV, at, upto))
    end
    at = upto + 1
  end
end
