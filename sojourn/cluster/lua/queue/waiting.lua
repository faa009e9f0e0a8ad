-- List the entries that wait, in the order in which they would go if all hosts had room.
--
-- KEYS: none
-- ARGV[1]: how many at most
-- Atomic: the answer is of one instant. Nothing is written.
-- Returns {leases in the cluster, rows}, where a row is {id, batch, priority, source, destination,
--   tries, due, leases out of the source, leases into the destination}, and due is 0 for one whose
--   turn comes, -1 if its batch is paused, or in how many ms it is due.

local count = tonumber(ARGV[1])
local queues, rows = {}, {}

local function add_row(id, due)
  local entry = get(id)
  rows[#rows + 1] = {id, entry.batch, entry.priority, entry.source, entry.destination, entry.tries,
    due, held('out:' .. entry.source), held('in:' .. entry.destination)}
end

local batches, paused = call('ZRANGE', Q .. 'turns', 0, count - 1), {}
for _, batch in ipairs(call('SMEMBERS', Q .. 'paused')) do
  batches[#batches + 1], paused[batch] = batch, true
end

-- The lines of a batch's routes, merged into one by their scores.
for _, batch in ipairs(batches) do
  local merged = {}
  for _, route in ipairs(call('ZRANGE', Q .. 'routes:' .. batch, 0, count - 1)) do
    local ranked = call('ZRANGE', line(batch, route), 0, count - 1, 'WITHSCORES')
    for i = 1, #ranked, 2 do merged[#merged + 1] = {tonumber(ranked[i + 1]), ranked[i]} end
  end
  table.sort(merged, function(a, b) return a[1] < b[1] end)
  queues[#queues + 1] = {batch, merged}
end

-- Batches take turns: the first of each, then the second of each, and so on.
for round = 1, count do
  for _, queue in ipairs(queues) do
    local batch, merged = queue[1], queue[2]
    if merged[round] and #rows < count then
      add_row(merged[round][2], paused[batch] and -1 or 0)
    end
  end
end

local later = call('ZRANGE', Q .. 'later', 0, count - 1, 'WITHSCORES')
for i = 1, #later, 2 do
  if #rows < count then add_row(later[i], math.max(1, later[i + 1] - now)) end
end
return {held('taken'), rows}
