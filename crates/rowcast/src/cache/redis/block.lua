-- One block: the rows, then the seen logs, then the checkpoint, last, so that an error in the middle leaves it where it was.
--
-- ARGV goes on: seven counts, then that many
--   values of strings (key, value, …), keys to be removed, hashes (count, field, value, …; their keys are the first of those
--   to be removed), groups of rows on terms of their own (time to live in ms or '', '1' where only existing keys are written,
--   number of strings, number of hashes, then key, value, … and key, count, field, value, …), appended pieces of seen logs
--   (key, bytes), seen logs to be forgotten, values of the checkpoint
local strings, removed, hashes, groups = tonumber(ARGV[at]), tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
local appended, forgotten, checkpoint = tonumber(ARGV[at + 4]), tonumber(ARGV[at + 5]), tonumber(ARGV[at + 6])
at = at + 7

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

for _ = 1, groups do
  local ttl, existing = ARGV[at], ARGV[at + 1] == '1'
  local texts, maps = tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  at = at + 4
  for _ = 1, texts do
    local key, value = ARGV[at], ARGV[at + 1]
    at = at + 2
    if not existing then
      redis.call('SET', key, value, 'PX', ttl)
    elseif ttl ~= '' then
      redis.call('SET', key, value, 'XX', 'PX', ttl)
    else
      -- Whoever filled the key has said how long it stands.
      redis.call('SET', key, value, 'XX', 'KEEPTTL')
    end
  end
  for _ = 1, maps do
    local key, count = ARGV[at], tonumber(ARGV[at + 1])
    at = at + 2
    -- What the key has left in ms, -1 where it stays, -2 where it does not exist.
    local left = existing and redis.call('PTTL', key) or -1
    if left == -2 then
      at = at + count
    else
      redis.call('UNLINK', key)
      call('HSET', count, key)
      if ttl ~= '' then
        redis.call('PEXPIRE', key, ttl)
      elseif left >= 0 then
        redis.call('PEXPIRE', key, left)
      end
    end
  end
end

for _ = 1, appended do
  redis.call('APPEND', ARGV[at], ARGV[at + 1])
  -- Should the checkpoint be lost, nobody would know of the log any more. One that is lost too early only costs a fresh run.
  redis.call('EXPIRE', ARGV[at], 604800)
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
