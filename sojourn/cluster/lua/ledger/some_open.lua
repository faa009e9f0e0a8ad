-- List some of the open migrations, and drop those of them whose hash has expired.
--
-- KEYS: none
-- ARGV[1]: the key of the open ones
-- ARGV[2]: what the key of a migration begins with
-- ARGV[3]: where the last call ended, "0" for the first
-- Atomic: the answer is of one instant. One that was there during all calls is in one of the answers.
-- Returns where this call ended, "0" if that was the end, and a flat list of ids and states.
-- Safe to repeat.

if redis.call('TYPE', ARGV[1]).ok ~= 'hash' then
  return { '0', {} }
end
local cursor, some = unpack(redis.call('HSCAN', ARGV[1], ARGV[3], 'COUNT', 1000))
local known = {}
for i = 1, #some, 2 do
  if redis.call('EXISTS', ARGV[2] .. some[i]) == 1 then
    known[#known + 1], known[#known + 2] = some[i], some[i + 1]
  else
    redis.call('HDEL', ARGV[1], some[i])
  end
end
return { cursor, known }
