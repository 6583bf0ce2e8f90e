"""What lives under the home folder: files and threads, no asyncio, no sockets."""
