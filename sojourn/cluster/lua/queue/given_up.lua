-- List the entries that were given up, the oldest first.
--
-- KEYS: none
-- ARGV[1]: how many at most
-- Atomic: the answer is of one instant. Nothing is written.
-- Returns a list of {id, {name, value, ...}}.

local rows = {}
for _, id in ipairs(call('ZRANGE', Q .. 'given-up', 0, ARGV[1] - 1)) do
  rows[#rows + 1] = record(id)
end
return rows
