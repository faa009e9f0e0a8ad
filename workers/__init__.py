"""Where the steps run: one worker per host, on the queue of the host's name."""
