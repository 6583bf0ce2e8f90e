"""Bytes and sockets, never records: HTTP/1.1, event streams, TLS, and who may be dialled."""
