-- What every script of the batches begins with: its constants come before this file, its own text
-- follows. sojourn/cluster/batches.py documents the keys.

-- Announce to those who follow the stream of events that a batch has changed, and its new state if
-- that is what changed; everything else is read from the batch.
local function announce(batch, state)
  local data = state and cjson.encode({state = state}) or '{}'
  redis.call('XADD', EVENTS, 'MAXLEN', '~', EVENTS_KEPT, '*',
    'migration', batch, 'kind', 'batch', 'data', data)
end
