"""What is asked of JetStream: about a stream and its messages, to make one, and what a publish was answered."""

import binascii
import json
from collections.abc import Mapping
from typing import Any, Final

from ..core.value import dataclass, field
from .nats import Nats
from .protocol import HEAD_BYTES_MAX, SAID_BYTES_MAX, Delivery, EngineError, decoded, headers_of, published, said

STREAM_MISSING: Final = 10059
MESSAGE_MISSING: Final = 10037
CONSUMER_MISSING: Final = 10014
WRONG_LAST: Final = frozenset({10070, 10071})
"""The message named another predecessor than the stream has."""
FULL: Final = frozenset({10023, 10028, 10047, 10077, 10052, 10002})
"""Of a stream, an account or a disk that has no room."""
BATCH_DUPLICATE: Final = 10201
"""A batch has an id that the stream had within WINDOW_NS."""
WINDOW_NS: Final = 120_000_000_000
"""The time in which the server drops repeats: the net below the chain, and the server's own default."""

PENDING_MAX: Final = 1024  # twice what one carrier asks for at once
UNUSED_NS: Final = 30 * 86_400 * 1_000_000_000
"""The server deletes a consumer that nobody asked for so long; a reader that comes back makes another and pulls."""
PULL_NS: Final = 30_000_000_000
"""After this a request for messages ends, with an answer if none came."""
MESSAGE_BYTES_MAX: Final = 12 * 1024 * 1024
"""Of a stored message in base64: servers take messages of up to 8 MiB."""


@dataclass(frozen=True, slots=True)
class StreamState:
    """A stream as the server describes it."""

    subjects: tuple[str, ...]
    messages: int
    first_seq: int
    last_seq: int
    created: str
    bytes: int = 0
    atomic: bool = False
    """Whether it takes batches of which all or nothing is stored.  Servers before 2.12 store no such grant, and would
    silently store each message of a batch."""
    message_bytes_max: int = 0
    """The most that it takes of a message with its headers; 0 if it has no bound of its own."""


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A message of a stream."""

    subject: str
    seq: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Ack:
    """The answer to a publish: where it stands, or why it was refused."""

    seq: int
    duplicate: bool = False
    error: int = 0
    text: str = ""


class JetStreamError(EngineError):
    """JetStream refuses a request; `number` is its own code."""

    def __init__(self, code: str, message: str, number: int) -> None:
        super().__init__(code, message)
        self.number = number


async def state_of(nats: Nats, stream: str) -> StreamState | None:
    """Return the state of a stream, None if there is none.  Raises EngineError."""
    try:
        answer = await ask(nats, f"STREAM.INFO.{stream}")
    except JetStreamError as exc:
        if exc.number == STREAM_MISSING:
            return None
        raise
    return _state(answer)


async def create(nats: Nats, stream: str, subject: str) -> StreamState:
    """Make a stream; its retention is the operator's to change.

    So is `allow_atomic`: a server syncs its disk at each batch then, which halves its rate if it does not sync else.
    """
    return _state(await ask(nats, f"STREAM.CREATE.{stream}", {
        "name": stream, "subjects": [subject], "retention": "limits", "storage": "file", "discard": "old",
        "num_replicas": 1, "duplicate_window": WINDOW_NS, "max_msgs": -1, "max_bytes": -1, "max_age": 0,
        "max_consumers": -1, "max_msgs_per_subject": -1, "max_msg_size": -1,
    }))  # fmt: skip


async def message_at(nats: Nats, stream: str, seq: int) -> StoredMessage | None:
    """Return the message with this sequence, None if there is none."""
    return await _message(nats, stream, {"seq": seq})


async def last_under(nats: Nats, stream: str, subject: str) -> StoredMessage | None:
    """Return the last message of a subject, None if there is none."""
    return await _message(nats, stream, {"last_by_subj": subject})


async def has_consumer(nats: Nats, stream: str, name: str) -> bool:
    """Return whether a stream has this consumer.  Raises JetStreamError if there is no such stream."""
    try:
        await ask(nats, f"CONSUMER.INFO.{stream}.{name}")
    except JetStreamError as exc:
        if exc.number == CONSUMER_MISSING:
            return False
        raise
    return True


async def create_consumer(nats: Nats, stream: str, name: str, subject: str) -> None:
    """Make a durable pull consumer of what comes under a subject from now on; an ack counts for all before it."""
    await ask(nats, f"CONSUMER.CREATE.{stream}.{name}.{subject}", {
        "stream_name": stream, "action": "create", "config": {
            "durable_name": name, "name": name, "filter_subject": subject, "deliver_policy": "new",
            "ack_policy": "all", "ack_wait": WINDOW_NS, "max_ack_pending": PENDING_MAX, "replay_policy": "instant",
            "inactive_threshold": UNUSED_NS,
        },
    })  # fmt: skip


async def delete_consumer(nats: Nats, stream: str, name: str) -> bool:
    """Delete a consumer; return whether there was one."""
    try:
        await ask(nats, f"CONSUMER.DELETE.{stream}.{name}")
    except JetStreamError as exc:
        if exc.number not in (CONSUMER_MISSING, STREAM_MISSING):
            raise
        return False
    return True


def pull_of(stream: str, name: str, reply: str, count: int, bytes_max: int) -> bytes:
    """Return the message that asks a consumer for up to so many messages, which come as they are there."""
    asked = json.dumps({"batch": count, "expires": PULL_NS, "max_bytes": bytes_max}).encode()
    return published(f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{name}", reply, b"", asked)


def consumer_in(reply: str) -> str:
    """Return the consumer that a delivery is of, by the subject that acknowledges it; "" for another form."""
    words = reply.split(".")
    if words[:2] != ["$JS", "ACK"]:
        return ""
    return words[3] if len(words) == 9 else words[5] if len(words) >= 11 else ""


async def ask(nats: Nats, name: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return JetStream's answer to a request.  Raises JetStreamError for a refusal."""
    raw = json.dumps(body).encode() if body is not None else b""
    bytes_max = MESSAGE_BYTES_MAX if name.startswith("STREAM.MSG.GET.") else SAID_BYTES_MAX
    answer = decoded((await nats.request(f"$JS.API.{name}", raw)).body, bytes_max)
    error = answer.get("error")
    if isinstance(error, dict):
        number = error.get("err_code")
        text = said(str(error.get("description", "")))
        code = "sink-full" if number in FULL else "sink-refused"
        raise JetStreamError(code, f"JetStream says: {text}", number if type(number) is int else 0)
    return answer


def ack_of(delivery: Delivery) -> Ack:
    """Return what the answer to a publish says."""
    if delivery.head and headers_of(delivery.head)[0] == 503:
        return Ack(0, error=STREAM_MISSING, text="no stream takes the subject")
    value = decoded(delivery.body)
    error = value.get("error")
    if isinstance(error, dict):
        number = error.get("err_code")
        return Ack(0, error=number if type(number) is int and number else 1, text=said(str(error.get("description"))))
    return Ack(_count(value, "seq"), duplicate=value.get("duplicate") is True)


def _state(answer: Mapping[str, Any]) -> StreamState:
    config, state, created = answer.get("config"), answer.get("state"), answer.get("created")
    subjects = config.get("subjects", []) if isinstance(config, dict) else None
    if not isinstance(config, dict) or not isinstance(state, dict) or not isinstance(subjects, list):
        raise EngineError("sink-refused", "the server describes the stream in another form")
    return StreamState(
        tuple(str(subject) for subject in subjects[:64]), _count(state, "messages"), _count(state, "first_seq"),
        _count(state, "last_seq"), said(str(created)[:64]), _count(state, "bytes"), config.get("allow_atomic") is True,
        largest if type(largest := config.get("max_msg_size")) is int and largest > 0 else 0,
    )  # fmt: skip


async def _message(nats: Nats, stream: str, which: Mapping[str, Any]) -> StoredMessage | None:
    try:
        answer = await ask(nats, f"STREAM.MSG.GET.{stream}", which)
    except JetStreamError as exc:
        if exc.number == MESSAGE_MISSING:
            return None
        raise
    found = answer.get("message")
    if not isinstance(found, dict) or not isinstance(found.get("subject"), str):
        raise EngineError("sink-refused", "the server gives a message in another form")
    head = _unb64(found.get("hdrs", ""))
    if len(head) > HEAD_BYTES_MAX:
        raise EngineError("sink-refused", "the headers of a message are too long")
    headers = headers_of(head)[1] if head else {}
    return StoredMessage(found["subject"], _count(found, "seq"), headers, _unb64(found.get("data", "")))


def _unb64(text: object) -> bytes:
    try:
        return binascii.a2b_base64(str(text).encode("ascii"), strict_mode=True) if text else b""
    except (binascii.Error, ValueError) as exc:
        raise EngineError("sink-refused", "the server gives a message that is not base64") from exc


def _count(value: Mapping[str, Any], name: str) -> int:
    number = value.get(name, 0)
    if type(number) is not int or not 0 <= number < 2**63:
        raise EngineError("sink-refused", f"the server gives {name} in another form")
    return number
