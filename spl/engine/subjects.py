"""Names in the engine: the stream of an instance, the subjects of its records, and who may read which; pure.

    stream    SPL_<label>_<tail of the DID>
    subject   spl.<tail>.<namespace>.<shard 0..63, or thread>
    chains    spl.<tail>._keys.<signer>

Servers accept a literal `*` and `>` within a published subject, and readers would then take them for wildcards.  So
each token is escaped: letters, digits, "_" and "-" stay, any other byte becomes "=XX".  A token over TOKEN_BYTES is
replaced by "=h" and a hash, which no escaped text begins with, since "h" is no hexadecimal digit.

Subjects of threads cost the server memory for each thread (some 200 bytes), so 64 shards a namespace are the default.
"""

from hashlib import sha256
from typing import Final

from ..core.identity.did import label_of

SHARDS: Final = 64
SHARD: Final = "shard"
THREAD: Final = "thread"
TOKEN_BYTES: Final = 120
KEYS: Final = "_keys"

_TAIL_CHARS: Final = 24
_PLAIN: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")


def token(text: str) -> str:
    """Return a text as one token of a subject; equal tokens mean equal texts."""
    raw = text.encode("utf-8", "surrogatepass")
    escaped = "".join(chr(byte) if byte in _PLAIN else f"={byte:02X}" for byte in raw)
    return escaped if 0 < len(escaped) <= TOKEN_BYTES else f"=h{sha256(raw).hexdigest()[:32]}"


def tail_of(did: str) -> str:
    """Return the fingerprint at the end of an instance's DID."""
    return did[-_TAIL_CHARS:]


def stream_of(did: str) -> str:
    """Return the name of the stream of an instance."""
    return f"SPL_{label_of(did)}_{tail_of(did)}"


def all_of(did: str) -> str:
    """Return the subject that everything of an instance lies under."""
    return f"spl.{tail_of(did)}.>"


def namespace_of(did: str, namespace: str) -> str:
    """Return the subject that all records of a namespace lie under."""
    return f"spl.{tail_of(did)}.{token(namespace)}.>"


def subject_of(did: str, namespace: str, thread: str, by: str) -> str:
    """Return the subject of a record; `by` is SHARD or THREAD."""
    last = token(thread) if by == THREAD else str(shard_of(thread))
    return f"spl.{tail_of(did)}.{token(namespace)}.{last}"


def keys_of(did: str, signer: str) -> str:
    """Return the subject of a signer's key chain."""
    return f"spl.{tail_of(did)}.{KEYS}.{token(signer)}"


def shard_of(thread: str) -> int:
    """Return the shard of a thread, so that the order within a thread is that of one subject."""
    return sha256(thread.encode("utf-8", "surrogatepass")).digest()[0] % SHARDS


def permissions(did: str, namespaces: tuple[str, ...], reader: str) -> dict[str, list[str]]:
    """Return {publish, subscribe}: what a user of the server needs, and may have, to read these namespaces and no more.

    `reader` begins the names of its durable consumers, one for each namespace.  The filter is a part of the subject on
    which a consumer is created, so the server enforces it.
    """
    stream, publish = stream_of(did), list[str]()
    for namespace in namespaces:
        name = consumer_of(reader, namespace)
        publish += [
            f"$JS.API.CONSUMER.CREATE.{stream}.{name}.{namespace_of(did, namespace)}",
            f"$JS.API.CONSUMER.INFO.{stream}.{name}",
            f"$JS.API.CONSUMER.DELETE.{stream}.{name}",
            f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{name}",
            f"$JS.ACK.{stream}.{name}.>",
        ]
    return {"publish": publish, "subscribe": [f"{inbox_of(reader)}.>"]}


def inbox_of(reader: str) -> str:
    """Return what the inboxes of a reader begin with."""
    return f"_INBOX_{reader}"


def consumer_of(reader: str, namespace: str) -> str:
    """Return the name of a reader's durable consumer for a namespace, which both sides of a pair find alone."""
    return f"{reader}-{sha256(namespace.encode()).hexdigest()[:8]}"
