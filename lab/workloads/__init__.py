"""Programs to move. Each is run by file name with a host's own Python and uses the standard library only."""
