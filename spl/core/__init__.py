"""Values and rules without I/O, clock, randomness, environment or logging; can be vendored alone.

In import order:

    version  errors  limits  when         what everything else uses
    event  backoff  recent                log lines, delays and buckets, recent measurements
    canon  keys                           canonical JSON, cryptography
    cel/                                  the expression language of rules
    identity/                             DIDs, key chains and their pins, manifests, signed messages, tokens
    record/                               records, namespaces, levels, filters, cursors, pages
    proved  rules  fold                   permission and approval rules, fold rules
    pair/                                 a pair: its states, its steps, the handshake's messages
    consent  gate                         what crosses a pair, and what of it is accepted
"""
