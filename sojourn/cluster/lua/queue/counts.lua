-- Count the entries by their state.
--
-- KEYS: none
-- ARGV: none
-- Atomic: the four numbers are of one instant. Nothing is written.
-- Returns {waiting, later, taken, given up}.

local later, taken = call('ZCARD', Q .. 'later'), call('ZCARD', Q .. 'taken')
local given_up = call('ZCARD', Q .. 'given-up')
return {call('SCARD', Q .. 'ids') - later - taken - given_up, later, taken, given_up}
