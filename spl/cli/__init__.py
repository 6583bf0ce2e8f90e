"""The commands: they talk to the daemon over its socket, and print."""
