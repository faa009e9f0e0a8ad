-- Forget a migration, unless it is under way.
--
-- KEYS: none
-- ARGV[1]: its id
-- Atomic: it cannot be handed out between the check and its removal.
-- Returns 1, or 0 if it is under way or not in the queue. Safe to repeat.

local entry = get(ARGV[1])
if entry.state == nil or entry.state == 'taken' then return 0 end
forget(ARGV[1], entry)
return 1
