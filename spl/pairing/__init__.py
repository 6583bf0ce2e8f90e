"""The life of a pair, from the handshake to its revocation.

In import order: budgets, machine, statements, stepper, tokens, responder, exchange, initiator, handshake_loop,
maintenance, grants, pair_log, service.
"""
