"""What lives under the home folder: files and threads, no asyncio, no sockets.

In import order:

    disk  config  logs                    the file system; settings; log lines
    nonces  vault                         nonces that were seen; keys and secrets
    segments  tables/  index              the log's bytes; tables of what is where; what they find
    recovery  log                         what a crash left; the open log
    views                                 live folds, one frozen value behind each commit
    commit_queue  writes  writer          what waits for the next commit; what can be written; the one writer
    policy  manifest                      decisions by rule; what this instance publishes
    thread_state  projections             what threads fold to; claims of peers
    snapshot  restore                     threads out and in
    home  check                           opening and `init`; is the log sound
"""
