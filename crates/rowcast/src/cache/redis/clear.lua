-- For a full server: a key that cannot become what it should is better gone than stale. The checkpoint stays, so that the
-- block comes again.
--
-- ARGV goes on: the keys
in_parts(#ARGV - at + 1, function(...) redis.call('UNLINK', ...) end)
return {'done'}
