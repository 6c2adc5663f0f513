-- One block: the rows, then the seen logs, then the checkpoint, last, so that an error in the middle leaves it where it was.
--
-- ARGV goes on: six counts, then that many
--   values of strings (key, value, …), keys to be removed, hashes (count, field, value, …; their keys are the first of those
--   to be removed), appended pieces of seen logs (key, bytes), seen logs to be forgotten, values of the checkpoint
local strings, removed, hashes = tonumber(ARGV[at]), tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
local appended, forgotten, checkpoint = tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4]), tonumber(ARGV[at + 5])
at = at + 6

-- The door: changes nothing, and a server that is full, read-only or unable to save refuses it with nothing written. A
-- script that begins with UNLINK would be let through a full server's door, and its HSET after it.
redis.call('SET', KEYS[1], ARGV[1])

call('MSET', strings)
local hash_keys = at
call('UNLINK', removed)
for hash = 0, hashes - 1 do
  local key, count = ARGV[hash_keys + hash], tonumber(ARGV[at])
  at = at + 1
  call('HSET', count, key)
end

for _ = 1, appended do
  redis.call('APPEND', ARGV[at], ARGV[at + 1])
  at = at + 2
end
for _ = 1, forgotten do
  redis.call('UNLINK', ARGV[at])
  local piece = 0
  repeat piece = piece + 1 until redis.call('UNLINK', ARGV[at] .. ':' .. piece) == 0
  at = at + 1
end

redis.call('HSET', KEYS[2], unpack(ARGV, at, at + checkpoint - 1))
return {'done'}
