"""A federation daemon: signed, immutable, content-addressed JSON records, shared by pairs of instances that consented.

The house, from the roof down.  A file imports its own floor and floors below; services never import each other.

    5  cli/       the command line; talks to the daemon over its socket
    4  app        daemon  api/  setup  logs             builds everything, and the only place that knows everything
    3  services   auth                                  request -> principal
                  feed, offer                           source side of sync: pages of stored envelopes
                  sync, pull                            consumer side: when to read, and one reading
                  pairing, initiator, responder,        the handshake and the life of a pair, both roles
                  pairs, published
                  history                               the pair log, told to and asked of peers
    2  net/       HTTP/1.1 and SSE: bytes and sockets, never records
    1  ground     home: disk  line  segments  recover  table  index  store  views  vault  config  hub
                  snapshot, restore, storecheck         threads out and in, and is the log sound
    0  core/      values and rules: no I/O, clock, randomness, logging, environment

A record travels in one direction: api -> hub -> store (one write, one fdatasync) -> views -> feed -> the peer's sync
-> its hub.  The hub is the one door for writes; the log is the only truth; everything else can be rebuilt from it.
"""
