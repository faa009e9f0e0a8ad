-- Renew the leases of migrations that a host's journal knows, whoever took them.
--
-- KEYS: none
-- ARGV[1]: the holder, for people
-- ARGV[2]: the length of the lease, in ms
-- ARGV[3...]: ids
-- Atomic: one whose lease had expired has its places again, even if that exceeds a limit, since it
--   never stopped using them.
-- Returns how many were held; an id that is not in the queue, was never handed out, or whose entry
--   cannot be read is skipped. Safe to repeat.

local function renew(id)
  local entry = get(id)
  if entry.state == nil or tonumber(entry.tries) == 0 then return 0 end
  leave(id, entry)
  set(id, 'state', 'taken', 'holder', ARGV[1])
  lease(id, entry, tonumber(ARGV[2]))
  return 1
end

local renewed = 0
for i = 3, #ARGV do
  -- One whose fields cannot be read harms no other.
  local read, count = pcall(renew, ARGV[i])
  renewed = renewed + (read and count or 0)
end
return renewed
