-- Queue entries; an id that is queued already stays as it is.
--
-- KEYS: none
-- ARGV[1]: JSON, a list of objects with id, batch, priority, source, destination, plan (JSON as
--   text) and delay (ms)
-- Atomic: all entries of one call are queued at one instant.
-- Returns how many of them are new. Safe to repeat.

local added = 0
for _, entry in ipairs(cjson.decode(ARGV[1])) do
  if call('SADD', Q .. 'ids', entry.id) == 1 then
    added = added + 1
    set(entry.id, 'batch', entry.batch, 'priority', entry.priority, 'source', entry.source,
      'destination', entry.destination, 'plan', entry.plan,
      'number', call('INCR', Q .. 'number'), 'queued', text(now), 'tries', 0)
    if entry.delay > 0 then
      wait_until(entry.id, now + entry.delay)
    else
      wait(entry.id, get(entry.id))
    end
  end
end
return added
