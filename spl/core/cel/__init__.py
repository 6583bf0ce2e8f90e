"""A subset of CEL: parse, evaluate within a budget. No imports but core.errors; can be vendored alone."""
