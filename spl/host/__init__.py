"""The process: its signals and memory, the files of its program, who started it and where it listens."""
