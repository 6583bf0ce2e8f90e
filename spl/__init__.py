"""A federation daemon: signed, immutable, content-addressed JSON records, shared by pairs of instances that consented.

The house, from the roof down.  A file imports its own floor and floors below; services never import each other.

    5  cli/       the command line; talks to the daemon over its socket
    4  app        daemon  wiring  api/  setup  logs     builds everything, ties the services together
                  doctor, checkup, facts, pulse         why a pair does not sync
    3  services   auth                                  request -> principal
                  feed, source, offer, tail,            source side of sync: pages and streams of stored envelopes
                  shown, counts, bells, acks            lanes, projections, how many there are, who waits
                  sync, pull, follow, intake,           consumer side: when to read, pages, a stream, judging
                  jury, wire
                  push                                  both ends of a push, for a side that cannot be dialled
                  pairing, initiator, responder,        the handshake and the life of a pair, both roles
                  pairs, published, driver, upkeep,
                  renewal, talk, grants, handover
                  history                               the pair log, told to and asked of peers
                  reconcile, shared                     do both sides hold the same, and repair
    2  net/       HTTP/1.1 and SSE: bytes and sockets, never records
    1  ground     home: disk  line  segments  recover  table  lists  index  store  views  vault  config  policy
                  desk, hub                             who writes waits together; the one door for writes
                  snapshot, restore, storecheck,        threads out and in; is the log sound, and is what its damage
                  remains                               took held elsewhere
                  states                                what threads come to, by their fold rules
                  claims                                what peers show of records that they do not share in full
    0  core/      values and rules: no I/O, clock, randomness, logging, environment

A record travels in one direction: api -> hub -> store (one write, one fdatasync) -> views -> feed -> the peer's sync
-> its hub.  The hub is the one door for writes; the log is the only truth; everything else can be rebuilt from it.
"""
