-- What every script of the queue begins with: its constants come before this file, its own text
-- follows. sojourn/cluster/queue.py documents the keys; they are named here and not passed as KEYS,
-- which one Redis allows and a cluster of Redis would not.
--
-- Redis runs a script to its end before it answers anybody else, so each operation is atomic.

local Q = 'sojourn:queue:'
local call, clock = redis.call, redis.call('TIME')
-- Redis's own clock, in ms: no client's clock decides when a lease ends.
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

-- Lua would write a time in ms as 1.7e+12; Redis needs all its digits.
local function text(number) return string.format('%.0f', number) end

-- Return the fields of an entry by name; an empty table if the id is not in the queue.
local function get(id)
  local flat, entry = call('HGETALL', Q .. 'entry:' .. id), {}
  for i = 1, #flat, 2 do entry[flat[i]] = flat[i + 1] end
  return entry
end

-- Return an entry as a script answers with it: its id, and a flat list of names and values.
local function record(id) return {id, call('HGETALL', Q .. 'entry:' .. id)} end

local function set(id, ...) call('HSET', Q .. 'entry:' .. id, ...) end
local function route_of(entry) return entry.source .. '>' .. entry.destination end
local function line(batch, route) return Q .. 'line:' .. batch .. ':' .. route end

-- Return how many leases in a sorted set have not expired.
local function held(key) return call('ZCOUNT', Q .. key, '(' .. text(now), '+inf') end

-- Rank a route by its first entry. A route without entries is dropped, and so is the turn of a
-- batch without routes. A paused batch keeps its routes but has no turn.
local function settle(batch, route)
  local first = call('ZRANGE', line(batch, route), 0, 0, 'WITHSCORES')
  if first[2] then
    call('ZADD', Q .. 'routes:' .. batch, first[2], route)
    if call('SISMEMBER', Q .. 'paused', batch) == 0 then
      call('ZADD', Q .. 'turns', 'NX', call('INCR', Q .. 'turn'), batch)
    end
  else
    call('ZREM', Q .. 'routes:' .. batch, route)
    if call('EXISTS', Q .. 'routes:' .. batch) == 0 then call('ZREM', Q .. 'turns', batch) end
  end
end

-- Put an entry into the line of its route. One step of priority outweighs 2^40 arrivals, and both
-- fit into the 53 bits of a score (PRIORITIES in queue.py).
local function wait(id, entry)
  set(id, 'state', 'waiting')
  call('ZADD', line(entry.batch, route_of(entry)), entry.number - entry.priority * 2 ^ 40, id)
  settle(entry.batch, route_of(entry))
end

local function wait_until(id, due)
  set(id, 'state', 'later')
  call('ZADD', Q .. 'later', text(due), id)
end

-- Take an entry out of the one place where its state says it is; its hash remains.
local function leave(id, entry)
  if entry.state == 'waiting' then
    call('ZREM', line(entry.batch, route_of(entry)), id)
    settle(entry.batch, route_of(entry))
  elseif entry.state == 'taken' then
    call('ZREM', Q .. 'taken', id)
    call('ZREM', Q .. 'out:' .. entry.source, id)
    call('ZREM', Q .. 'in:' .. entry.destination, id)
  else
    call('ZREM', Q .. entry.state, id)
  end
end

local function forget(id, entry)
  -- One whose fields cannot be read is forgotten all the same; its places expire.
  pcall(leave, id, entry)
  call('DEL', Q .. 'entry:' .. id)
  call('SREM', Q .. 'ids', id)
end

-- Requeue an entry whose lease has expired, or give it up after the maximum number of attempts.
local function requeue(id, entry)
  leave(id, entry)
  if tonumber(entry.tries) < MAX_TRIES then return wait(id, entry) end
  set(id, 'state', 'given-up', 'why', entry.holder .. ' fell silent')
  call('ZADD', Q .. 'given-up', text(now), id)
end

-- Remove up to SWEEP entries whose time has come from a sorted set, and do something for each. It is
-- removed first, whatever its fields say: one that cannot be read ends the script once, not always.
local function each_due(set, act)
  for _, id in ipairs(call('ZRANGEBYSCORE', Q .. set, '-inf', text(now), 'LIMIT', 0, SWEEP)) do
    call('ZREM', Q .. set, id)
    act(id, get(id))
  end
end

-- Requeue up to SWEEP entries that are due, and as many whose lease has expired.
local function sweep()
  each_due('later', wait)
  each_due('taken', requeue)
end

-- Hold the three places of an entry for `length` ms. The set of a host expires with its last lease,
-- not with this one: a short lease must not end the places that are held for longer.
local function lease(id, entry, length)
  call('ZADD', Q .. 'taken', text(now + length), id)
  for _, key in ipairs({Q .. 'out:' .. entry.source, Q .. 'in:' .. entry.destination}) do
    call('ZADD', key, text(now + length), id)
    call('PEXPIREAT', key, call('ZREVRANGE', key, 0, 0, 'WITHSCORES')[2])
  end
end
