-- Put a migration among the open ones, or take it out, as its state demands, whoever wrote that.
--
-- KEYS: none
-- ARGV[1]: the key of the migration
-- ARGV[2]: the key of the open ones
-- ARGV[3]: the id of the migration
-- ARGV[4...]: the states in which a migration is open
-- Atomic: the state cannot change between reading it and acting on it.
-- Returns how many entries were added or removed. Safe to repeat.

local state = redis.call('HGET', ARGV[1], 'state')
for i = 4, #ARGV do
  -- The ledger keeps the state as JSON.
  if state == cjson.encode(ARGV[i]) then
    return redis.call('HSET', ARGV[2], ARGV[3], ARGV[i])
  end
end
return redis.call('HDEL', ARGV[2], ARGV[3])
