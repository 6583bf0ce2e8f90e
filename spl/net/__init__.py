"""Bytes and sockets, never records: HTTP/1.1, event streams, TLS, and who may be dialled.

The folder can be vendored alone: of the rest of the product it imports core/errors, core/event, core/limits, core/when
and core/version only, which hold no record (tools/layers.py checks it).  Bottom up:

    heads http1 sse deflate       bytes to events and back, pure
    address admission routes      verdicts, bounds and the values of handlers, pure
    sockets                       listening, dialling, TLS contexts
    handshakes connection server  the serving side
    dialer client probe           the asking side
"""
