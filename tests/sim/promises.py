"""What must hold in every simulated world, and is looked at while it lives and at its end."""

import json

from spl.home.index import by_namespace

from .node import Node

ROWS_MAX = 100_000


def ids(node: Node, ns: str, after_seq: int = 0) -> set[str]:
    """Return the ids of the records that a node holds in a namespace, in lines behind a place of its log."""
    store = node.home.store
    rows = [row for row in store.index.after(by_namespace(ns), after_seq, ROWS_MAX) if row.kind == "rec"]
    return {json.loads(payload)["id"] for payload in store.payloads(rows)}
