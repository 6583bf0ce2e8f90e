"""The daemon for Python programs: `Client` for threads, `AsyncClient` for asyncio, with the same methods.

    from spl.client import Client

    with Client.from_home() as client:                          # the socket of the user's own daemon
        client.emit("th_garden", "did:sync:user:alice", {"text": "the fence is up"})
        for record in client.tail("th_garden", after=0):        # each record once, also across restarts
            print(record.sequence, record.body["text"])

Only the standard library is loaded; asyncio only with AsyncClient, TLS only for https.  Every refusal and every fault
raises a `ClientError` with the daemon's stable `code` and a `hint`; nothing answers empty because something failed.

    calls      requests and answers as values, shared by both clients
    follow     a thread that is followed across connections, without I/O
    errors     what the methods raise
    dial       where a daemon is, and the way there
    blocking   Client
    waiting    AsyncClient
"""

import importlib
from typing import TYPE_CHECKING

from .blocking import Client
from .calls import Record
from .errors import (
    ClientError,
    ConflictError,
    ForbiddenError,
    InvalidError,
    MissingError,
    PartialError,
    UnreachableError,
)

if TYPE_CHECKING:
    from .waiting import AsyncClient

__all__ = [
    "AsyncClient",
    "PartialError",
    "Client",
    "ClientError",
    "ConflictError",
    "ForbiddenError",
    "InvalidError",
    "MissingError",
    "Record",
    "UnreachableError",
]


def __getattr__(name: str) -> object:
    if name != "AsyncClient":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Loaded when asked for: asyncio is more than half of the start of a program that does not use it.
    return importlib.import_module(".waiting", __name__).AsyncClient
