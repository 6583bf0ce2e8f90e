"""A subset of CEL: parse, evaluate within a budget.  Imports core.errors only, so that it can be vendored alone.

In import order: grammar (text to tree), evaluate (tree and facts to a value).
"""
