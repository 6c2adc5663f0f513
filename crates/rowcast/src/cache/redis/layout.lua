-- Puts another number of partitions into force.
--
-- KEYS: the layout
-- ARGV: the old number ('' where there must be none), the new number, then four counts, then that many
--   old checkpoints (key, version or '' where there must be none), new checkpoints (count of values, key, field, value, …),
--   keys to be removed, seen logs to be forgotten
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return {'overtaken'} end
local old, new, removed, forgotten = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local at = 7
for _ = 1, old do
  local key, version = ARGV[at], ARGV[at + 1]
  if version == '' then
    if redis.call('EXISTS', key) == 1 then return {'overtaken'} end
  elseif redis.call('HGET', key, 'version') ~= version then
    return {'overtaken'}
  end
  at = at + 2
end

-- The door, as in a block. An error further down finds the old layout in force, or the new one whole.
if ARGV[1] ~= '' then redis.call('SET', KEYS[1], ARGV[1]) end
for _ = 1, new do
  local count, key = tonumber(ARGV[at]), ARGV[at + 1]
  redis.call('UNLINK', key)
  redis.call('HSET', key, unpack(ARGV, at + 2, at + 1 + count))
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
