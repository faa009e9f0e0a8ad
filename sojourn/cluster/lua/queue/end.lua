-- Forget a migration that has ended, whatever its state in the queue.
--
-- KEYS: none
-- ARGV[1]: its id
-- Atomic: its entry and all its places go in one step.
-- Returns 1, or 0 if it is not in the queue. Safe to repeat.

local entry = get(ARGV[1])
if entry.state == nil then return 0 end
forget(ARGV[1], entry)
return 1
