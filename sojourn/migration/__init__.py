"""A migration as it stands on this host: what its source and its destination may do."""
