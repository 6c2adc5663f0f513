-- Puts another number of partitions into force.
--
-- Busy partitions move all the while, so only what the new checkpoints were made from must be as it was when it was read; the
-- greatest position is found here.
--
-- KEYS: the layout
-- ARGV: the old number ('' where there must be none), the new number, the lineage, then four counts, then that many
--   old checkpoints (key, lineage or '' where there must be none, mappings, old keys), new checkpoints (count of values, key,
--   field, value, …), keys to be removed, seen logs to be forgotten
-- Two positions: sixteen digits, then as many as it takes.
local function is_greater(a, b)
  local x, y = string.sub(a, 1, 16), string.sub(b, 1, 16)
  if x ~= y then return x > y end
  if #a ~= #b then return #a > #b end
  return a > b
end

if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return {'overtaken'} end
local lineage, greatest = ARGV[3], ''
local old, new, removed, forgotten = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local at = 8
for _ = 1, old do
  local key = ARGV[at]
  for field, name in ipairs({'lineage', 'mappings', 'old_keys'}) do
    if (redis.call('HGET', key, name) or '') ~= ARGV[at + field] then return {'overtaken'} end
  end
  if ARGV[at + 1] == lineage and lineage ~= '' then
    local position = redis.call('HGET', key, 'position')
    if greatest == '' or is_greater(position, greatest) then greatest = position end
  end
  at = at + 4
end

-- The door, as in a block. An error further down finds the old layout in force, or the new one whole.
if ARGV[1] ~= '' then redis.call('SET', KEYS[1], ARGV[1]) end
for _ = 1, new do
  local count, key = tonumber(ARGV[at]), ARGV[at + 1]
  redis.call('UNLINK', key)
  redis.call('HSET', key, unpack(ARGV, at + 2, at + 1 + count))
  redis.call('HSET', key, 'position', greatest)
  at = at + 2 + count
end
redis.call('SET', KEYS[1], ARGV[2])

for _ = 1, removed do
  redis.call('UNLINK', ARGV[at])
  at = at + 1
end
for _ = 1, forgotten do
  redis.call('UNLINK', ARGV[at])
  local piece = 0
  repeat piece = piece + 1 until redis.call('UNLINK', ARGV[at] .. ':' .. piece) == 0
  at = at + 1
end
return {'done'}
