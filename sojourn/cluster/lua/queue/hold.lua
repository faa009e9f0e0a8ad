-- Renew the leases of migrations that a host's journal knows, whoever took them.
--
-- KEYS: none
-- ARGV[1]: the holder, for people
-- ARGV[2]: the length of the lease, in ms
-- ARGV[3...]: ids
-- Atomic: one whose lease had expired has its places again, even if that exceeds a limit, since it
--   never stopped using them.
-- Returns how many were held; an id that is not in the queue, or was never handed out, is skipped.
--   Safe to repeat.

local renewed = 0
for i = 3, #ARGV do
  local id, entry = ARGV[i], get(ARGV[i])
  if entry.state and tonumber(entry.tries) > 0 then
    leave(id, entry)
    set(id, 'state', 'taken', 'holder', ARGV[1])
    lease(id, entry, tonumber(ARGV[2]))
    renewed = renewed + 1
  end
end
return renewed
