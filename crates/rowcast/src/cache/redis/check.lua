-- Tries every command that the other scripts use, on a key of rowcast's own that is gone again when it ends.
--
-- KEYS: the key
redis.call('SET', KEYS[1], '1')
redis.call('APPEND', KEYS[1], '1')
redis.call('EXPIRE', KEYS[1], 60)
redis.call('PEXPIRE', KEYS[1], 60000)
redis.call('PTTL', KEYS[1])
redis.call('GET', KEYS[1])
redis.call('STRLEN', KEYS[1])
redis.call('EXISTS', KEYS[1])
redis.call('MSET', KEYS[1], '1')
redis.call('UNLINK', KEYS[1])
redis.call('HSET', KEYS[1], 'field', '1')
redis.call('HGET', KEYS[1], 'field')
redis.call('UNLINK', KEYS[1])
return {'done'}
