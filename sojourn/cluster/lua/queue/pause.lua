-- Hand out nothing more of a batch until it is resumed.
--
-- KEYS: none
-- ARGV[1]: the batch
-- Atomic: no entry of it is handed out after this.
-- Returns 1 if it had a turn, else 0. Safe to repeat.

call('SADD', Q .. 'paused', ARGV[1])
return call('ZREM', Q .. 'turns', ARGV[1])
