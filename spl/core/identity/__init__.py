"""Identities as values: DIDs, key chains, manifests, signed messages, bearers."""
