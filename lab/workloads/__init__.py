"""Programs to move, run by file name with a host's own Python and its standard library only."""
