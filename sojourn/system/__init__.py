"""What this host is asked for: commands, processes, mounts, memory, processors, sockets."""
