"""A pair as a value: its states, its steps, the handshake's messages."""
