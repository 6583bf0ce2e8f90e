"""A pair as a value: its states, its steps, the handshake's messages.

In import order: state, aitl, pair, steps, diff, handshake.
"""
