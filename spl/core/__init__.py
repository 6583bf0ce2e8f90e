"""Values and rules without I/O, clock, randomness, environment or logging; can be vendored alone."""
