"""The durable state of this host, on its own disk: the journals are the truth."""
