"""Identities as values.

In import order: words (2048 words for keys), did (DIDs, key chains), pins (the table of pinned chains), manifest,
message (signed messages), bearer (tokens and their proofs).
"""
