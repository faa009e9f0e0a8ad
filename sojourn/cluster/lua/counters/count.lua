-- Count a finished migration, unless it was counted before: an end may be recorded more than once.
--
-- KEYS: none
-- ARGV[1]: the key of the migration
-- ARGV[2]: the key of the counters
-- ARGV[3], ARGV[4]...: what is counted and by how much, in pairs
-- Atomic: the mark on the migration and all its counts are written in one step.
-- Returns 1, or 0 if it was counted before. Safe to repeat.

if redis.call('HSETNX', ARGV[1], 'counted', 'true') == 0 then return 0 end
for i = 3, #ARGV, 2 do redis.call('HINCRBYFLOAT', ARGV[2], ARGV[i], ARGV[i + 1]) end
return 1
