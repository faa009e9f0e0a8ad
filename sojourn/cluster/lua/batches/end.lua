-- Record the end of a part, unless it has one that is final.
--
-- KEYS: none
-- ARGV[1]: the key of the batch
-- ARGV[2]: the number of the part
-- ARGV[3]: the end, JSON with its state
-- ARGV[4]: the id of the batch
-- ARGV[5], ARGV[6]: the states that are provisional, which a later end replaces
-- Atomic: of all who record ends, exactly one learns that the last part has ended.
-- Returns {1 if the part had no end before, else 0; how many parts have none now}. Safe to repeat.

local ends = ARGV[1] .. ':ends'
local before = redis.call('HGET', ends, ARGV[2])
local state = before and cjson.decode(before).state
if not before or state == ARGV[5] or state == ARGV[6] then
  redis.call('HSET', ends, ARGV[2], ARGV[3])
  announce(ARGV[4])
end
local total = tonumber(redis.call('HGET', ARGV[1], 'total') or '0')
return {before and 0 or 1, total - redis.call('HLEN', ends)}
