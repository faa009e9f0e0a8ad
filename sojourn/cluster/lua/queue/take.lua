-- Hand out the entry whose turn it is among those for which there is room, with a lease on its
-- three places.
--
-- KEYS: none
-- ARGV[1]: the ticket of this call: whoever repeats it with the same ticket gets the same answer
-- ARGV[2]: the holder, for people
-- ARGV[3]: the length of the lease, in ms
-- ARGV[4]: how many routes at most are examined
-- ARGV[5]: how many may be under way in the cluster
-- Atomic: expired leases are swept, the entry is chosen and its places are taken in one step, so no
--   two calls get the same entry, and no limit is exceeded.
-- Returns {id, {name, value, ...}} of the entry, or nil if there is none.

local ticket, holder, length = ARGV[1], ARGV[2], tonumber(ARGV[3])
local max_routes, cluster = tonumber(ARGV[4]), tonumber(ARGV[5])
local full, examined, passed = {}, 0, {}

local answered = call('GET', Q .. 'asked:' .. ticket)
if answered and get(answered).ticket == ticket then return record(answered) end
sweep()
if held('taken') >= cluster then return false end

-- Whether a host has been silent or cordoned for so long that what waits for it is handed out all
-- the same: whoever takes it finds that it cannot begin, and reports that.
local function is_given_up(key)
  local shut = Q .. 'shut:' .. key
  call('SET', shut, text(now), 'NX')
  call('PEXPIRE', shut, math.max(SHUT_KEPT_MS, 2 * length))
  return now - call('GET', shut) > SHUT_MS
end

-- Return how many a host announces that it lets out or in at once; nil if it is silent, or if it is
-- cordoned and nothing may go there.
local function limit(direction, host)
  local out, into = string.match(call('GET', ROOM .. host) or '', '^(%d+) (%d+)$')
  if direction == 'out' then return tonumber(out) end
  return call('HEXISTS', CORDONED, host) == 0 and tonumber(into) or nil
end

local function is_full(key, maximum)
  if maximum == nil then return not is_given_up(key) end
  call('DEL', Q .. 'shut:' .. key)
  return held(key) >= maximum
end

-- A host stands in many routes: it is examined once in a call.
local function has_room(direction, host)
  local key = direction .. ':' .. host
  if full[key] == nil then full[key] = is_full(key, limit(direction, host)) end
  return not full[key]
end

-- Iterate over a sorted set, lowest first, in pages: most calls end at the first member or two, and
-- must not cost more when there are ten thousand.
local function members(name, bound)
  local page, at, size = {}, 0, 16
  return function()
    if at >= bound then return nil end
    if at % size == 0 then page = call('ZRANGE', Q .. name, at, at + size - 1) end
    at = at + 1
    return page[(at - 1) % size + 1]
  end
end

local function hand_out(batch, route)
  local id = call('ZRANGE', line(batch, route), 0, 0)[1]
  -- Out of the line in which it was found, whatever its fields say: what cannot be handed out must
  -- not be found again.
  call('ZREM', line(batch, route), id)
  settle(batch, route)
  local entry = get(id)
  set(id, 'state', 'taken', 'holder', holder, 'ticket', ticket, 'tries', entry.tries + 1)
  lease(id, entry, length)
  -- XX: if this was the last of its batch, leaving the line has ended the batch's turn.
  call('ZADD', Q .. 'turns', 'XX', call('INCR', Q .. 'turn'), batch)
  call('SET', Q .. 'asked:' .. ticket, id, 'PX', length)
  return record(id)
end

for batch in members('turns', max_routes) do
  for route in members('routes:' .. batch, max_routes - examined) do
    examined = examined + 1
    local source, destination = string.match(route, '^(.*)>(.*)$')
    if has_room('out', source) and has_room('in', destination) then
      return hand_out(batch, route)
    end
  end
  passed[#passed + 1] = batch
  if examined >= max_routes then break end
end

-- The bound was reached, so there may be room behind it: the batches that were examined go to the
-- end, in their order, and the next call examines the others.
if examined >= max_routes then
  local turn, behind = call('INCRBY', Q .. 'turn', #passed) - #passed, {}
  for place, batch in ipairs(passed) do
    behind[2 * place - 1], behind[2 * place] = turn + place, batch
  end
  call('ZADD', Q .. 'turns', unpack(behind))
end
return false
