"""What the hosts share in Redis, and what is derived from it."""
