-- Give a migration that waits another priority.
--
-- KEYS: none
-- ARGV[1]: its id
-- ARGV[2]: the priority
-- Atomic: it moves within its line without leaving it.
-- Returns 1, or 0 if it does not wait. Safe to repeat.

local id, entry = ARGV[1], get(ARGV[1])
if entry.state ~= 'waiting' and entry.state ~= 'later' then return 0 end
entry.priority = ARGV[2]
set(id, 'priority', entry.priority)
if entry.state == 'waiting' then wait(id, entry) end
return 1
