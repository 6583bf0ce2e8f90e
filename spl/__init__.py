"""A federation daemon: signed, immutable, content-addressed JSON records, shared by pairs of instances that consented.

The map.  A folder is an import permission: each may import what stands left of it, never what stands right.

    core  net | home  sync  host  engine  pairing  doctor  ui  api | client  daemon  cli

    core/  values and rules: no I/O, clock, randomness, environment, logging or shared mutable state
        errors limits version when event  the codes; the bounds; the version; times as text; a log line as a value
        value                             dataclasses that take little memory
        backoff recent portion            delays, token buckets; what happened lately; how much goes at a time
        presence                          when a peer was heard in each direction, and when it is asked
        canon keys                        canonical JSON; cryptography, the only file that imports nacl
        cel record identity pair          folders, see below
        consent gate                      what crosses a pair, at which level; what a peer may bring in
        rules proved fold                 permission and approval rules; what a rule rests on; fold rules
        query                             what a filter holds of
    core/cel/  the expression language of rules
        grammar evaluate                  text to tree; tree to value, within a budget
    core/record/  a record and what is made of many
        record batch namespace            a record and its envelope; one signature for many; names of namespaces
        levels filter cursor page         projections; what a pair leaves out; a saved position; pages and pushes
        snapshot fingerprint position     records as a file; comparing two sets by ranges; sequences as tenants see them
    core/identity/  who says it
        did words pins                    DIDs and key chains; keys as words; the one table of pinned chains
        manifest message bearer           what an instance publishes; signed messages; tokens and proofs
    core/pair/  the pair machine
        pair state steps                  the fold over the records; the values; events, effects and legal steps
        modes status                      how a pair is read; what is shown of one peer
        handshake aitl diff               the numbered steps and their messages; what waits for a person; two histories
    net/  bytes and sockets, never records
        heads http1 sse deflate           HTTP/1.1 and event streams without I/O
        routes connection admission server  the server: route table, one connection, who may stay, the listener
        shared parts                      what the connections of a server share; a body as it arrives
        phases                            where a connection stands, and its deadline
        handshakes                        how many TLS handshakes are under way at once
        address sockets dialer            who may be dialled; opening and closing; the addresses of a name raced
        client client_socket probe        the client; one connection of it; the way to a peer
    home/  what lives under the home folder: files and threads
        disk config logs home             the file system; settings; log lines; opening and `init`
        vault nonces                      keys and secrets; the nonces that peers used
        segments recovery log             the log's bytes; what a crash left; the open log
        index tables                      where each line is: rows and lists; a folder, see below
        writer writes commit_queue        the one writer; what can be written; who waits for the next commit
        views policy manifest             live folds; decisions by rule; what we publish
        thread_state projections          what threads fold to; what peers show below full level
        snapshot restore check            threads out, and what may come in; bringing it in; is the log sound
    home/tables/  what the index is made of
        rows lists adding                 a row and the way to its payload; names; what a line adds
        sstable compaction                one table; how tables become fewer
    ui/  what browsers get: style and script, and markup from facts; loaded at the first request for it
        markup page soak                  text as HTML, in one place; the page, and the report of a soak, from facts
    sync/  replication, both sides
        scope lanes source                who may see what; where a reading stands; what pages and streams share
        changes stream pages notify       the feed; one stream; a page as it is sent; waking readers
        rollback                          peers that lost the end of their log
        peer reach                        the one way to speak to a peer; what this process learns of each
        lags                              how long peers take until they hold what was written here
        schedule pull follow ingest       when to read; pages; a stream; the one door for what peers send
        ledger budget                     what was refused; how many bytes a peer may bring in within a day
        push supervise compare            for a peer that cannot dial us; one task per pair; a folder, see below
    sync/compare/  whether two sides hold the same
        holdings fingerprints             the sets compared; answering a peer that compares
        reconcile anti_entropy            proof of equality, and what is missing fetched; each pair in the background
    host/  the process and who started it
        process program                   signals, open files, memory; what a running daemon imports late
        systemd listeners                 the service manager; where the daemon listens
    engine/  records into a stream engine or a program, and from one: loaded only where it is used, but for `engines`
        subjects credentials sinks        names there; a user's key; a sink as a value
        protocol nats jetstream           the server's protocol; a connection; what is asked of it
        reader pump                       the next records of the log; one sink while it runs
        jetstream_target program_target   where records go
        service engines                   every sink; what loads it
        carrier carriers received         one pair's records from an engine; all; how far a reader has come
    pairing/  a pair from hello to revoke
        service machine                   both roles; decide, append, fold, effects
        initiator handshake_loop          the asking side: what is said; sending it until it is a pair or over
        responder exchange                the answering side; one message and its answer
        budgets stepper newer             what is looked at from where; one thread for the steps; manifests that wait
        names                             which pair a name means; those of live pairs, in a file for shells
        statements                        what a peer's signed statements change, and how often
        tokens maintenance grants         renewal; what a live pair needs over months; consent of both sides
        pair_log                          the two histories of a pair
    doctor/  why it does not sync
        facts conditions catalogue checks  pure: what is known, what it shows, what is wrong and its fix, the lines
        gather peer_check health          facts of this home; of a peer; of the last half hour
        overview examine                  one pair at one moment, for every face; the report
        mend                              the store is kept whole
    api/  routes and handlers
        table app services auth answers   the route table; host and origin; what handlers use; who asks; forms
        proofs streams searches           a proof counts once; how many long answers one may have; readings in turns
        emit records lists queries        records in; one by one; lists of them; by a filter
        live watch snapshots              event streams for programs; a thread as it grows; backup
        metrics events openapi            what Prometheus reads; what pages and monitors do; the routes for programs
        sinks ui                          where records go beside the pairs; the page and its sessions
        pairs peers consent namespaces    for operators; what peers call; grants; the registry
        rules admin lifecycle             rules; the daemon itself; rotation, renewal, export
    client/  the daemon for Python programs
        calls follow errors dial          requests as values; a thread across connections; what is raised; the way there
        ssh                               the way there through ssh
        blocking waiting                  Client; AsyncClient
    cli/  commands over the socket: one file per noun
        main command client paste         finding a command; its form; asking the daemon; fixes as they can be pasted
        out fit                           printing; what a narrow terminal holds
        help manual manpages              explaining: commands and codes; the pages of manual/*.md; those for man
        api nagios                        any route, as it is; a line for a monitoring system
        live monitor wait ui              the daemon's events: as lines, as a frame, as a barrier; the page
        init serve settings status doctor logs storage identity tokens
        federation pair pair_page sync verify grants namespaces sink aitl rules
        emit threads debug completion service
        contexts                          daemons elsewhere, by name; all of them at once
        demo soak soak_plan soak_driver soak_daemons temporary

`daemon.py` builds everything in this order; `manual/` and `share/` hold texts alone.

The way of a record from `POST /v1/records` to the peer's disk, and the files it passes:

     1 net/connection     the request is read and bounded
     2 api/app            host, origin, bearer, scope
     3 api/emit           the body becomes an item
     4 home/commit_queue  it waits with others for its turn         (writer <-> commit_queue is the only return)
     5 home/writer        checked, given a clock, signed
     6 home/log           one write, one fdatasync
     7 home/index         it can be found
     8 home/views         folded, if a view needs it
     9 sync/notify        readers of its namespace wake; then the POST is answered
    10 sync/stream        sent as stored: from the last commits in memory, or by sync/lanes if the reader is behind
    11 net/client         the peer's end of the stream
    12 sync/follow        events become a page
    13 sync/ingest        known ids dropped; scope, id and signature judged (core/gate)
    14 home/commit_queue  record and position in one submission, and 5 to 8 again at the peer
    15 sync/changes       the ack leaves on the peer's own stream, or by sync/peer if there is none

The log is the only truth: index and views can be rebuilt from it.  Beside it stand the keys and secrets of home/vault.

Words.  `writer`: the one thread that writes.  `hub`: an instance that relays.  `source` and `consumer`: who serves and
who reads.  `voucher`: the instance that signed a record first.  `scope`: the rows that a pair may read.  `lane`: one
namespace, level and rule of a reading, with its own position.  `cursor`: a reading's position, sealed.  `projection`:
what travels of a record below full level.  `pin`: a key chain that may only grow.  `inbound`, `outbound`: what a
pair's namespace may bring in, and what we show.  `reach`: which way a pair's connections run.  `portion`: how many
records one request carries.  `withheld`: a record that the way does not carry even alone.  `ledger`: what was refused
and may be asked for again.  `sink`: where records go beside the pairs.  `finding`: one thing that is wrong, with its
fix.  `fold`: records to a value.
"""
