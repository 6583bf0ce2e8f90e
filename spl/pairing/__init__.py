"""The life of a pair, from the handshake to its revocation."""
