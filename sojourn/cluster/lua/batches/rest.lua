-- Close a batch that is under way if each of its parts has ended.
--
-- KEYS: none
-- ARGV[1]: the key of the batch
-- ARGV[2]: its id
-- Atomic: a batch that was resumed meanwhile has parts without an end again, and stays open.
-- Returns 0. Safe to repeat: a closed batch is not changed.

local closed = {running = 'finished', paused = 'finished', aborting = 'aborted'}
local state = closed[redis.call('HGET', ARGV[1], 'state')]
local total = tonumber(redis.call('HGET', ARGV[1], 'total') or '0')
if state and redis.call('HLEN', ARGV[1] .. ':ends') >= total then
  redis.call('HSET', ARGV[1], 'state', state)
  announce(ARGV[2], state)
end
return 0
