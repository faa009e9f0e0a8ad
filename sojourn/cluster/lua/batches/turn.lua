-- Change the state of a batch if it is one of those that are named.
--
-- KEYS: none
-- ARGV[1]: the key of the batch
-- ARGV[2]: its new state
-- ARGV[3]: its id
-- ARGV[4...]: the states from which it may change
-- Atomic: compare and set, and the event.
-- Returns 1 if it was changed, else 0.

local state = redis.call('HGET', ARGV[1], 'state')
for i = 4, #ARGV do
  if state == ARGV[i] then
    redis.call('HSET', ARGV[1], 'state', ARGV[2])
    announce(ARGV[3], ARGV[2])
    return 1
  end
end
return 0
