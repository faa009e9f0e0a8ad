-- Give a paused batch a turn again, if anything of it waits.
--
-- KEYS: none
-- ARGV[1]: the batch
-- Atomic: it is never in the order of turns while it counts as paused.
-- Returns 1. Safe to repeat: a batch that has a turn keeps it.

call('SREM', Q .. 'paused', ARGV[1])
if call('EXISTS', Q .. 'routes:' .. ARGV[1]) == 1 then
  call('ZADD', Q .. 'turns', 'NX', call('INCR', Q .. 'turn'), ARGV[1])
end
return 1
