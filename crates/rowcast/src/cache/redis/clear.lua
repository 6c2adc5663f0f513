-- For a full server: a key that cannot become what it should is better gone than stale. The checkpoint stays, so that the
-- block comes again.
--
-- ARGV goes on: the keys
call('UNLINK', #ARGV - at + 1)
return {'done'}
