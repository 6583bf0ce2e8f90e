"""Records into a JetStream stream: at least once, in order, resumable from the stream itself.

A message is the stored envelope, byte for byte, so a reader verifies id and signature itself.  Its headers:

    Nats-Msg-Id                 the record's id; <id>:<namespace> of one that an earlier line of another namespace is
    Nats-Expected-Last-Msg-Id   the id of the message before; of the first in a session, Nats-Expected-Last-Sequence
    Nats-Batch-…                instead, in a batch of which all or nothing is stored
    Spl-Position                <epoch>:<seq> in our log
    Spl-Previous                the id of the record before in its namespace, by which a reader sees what it misses
    Spl-Namespace, Spl-Thread   in full text

A batch of messages is stored as a whole or not at all, with one fsync and one answer, if the stream as the server has
stored it grants that (`allow_atomic`, servers from 2.12).  Otherwise, and if such a batch is refused, each message
names its predecessor: if one is lost, the server refuses all that follow, so nothing overtakes.  The first names the
stream's last sequence instead, because a server forgets the last id when it starts again after its window for repeats.

The server acknowledges before its fsync, so our position is read from the stream at each opening, never from a file of
ours: a stream that lost its tail is filled again.  The last message must be one of ours, which is checked by its bytes;
a message of somebody else stops the sink, for a position that others can write would let them skip records.

A record that is larger than the server or the stream takes goes as a pointer {id, thread, namespace, bytes} and blocks
nothing.  Key chains of signers stand under their own subjects, before the first record of a signer, for readers that
know nobody.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence, Set
from itertools import count
from pathlib import Path
from typing import Final, Protocol

from ..core import canon
from ..core.errors import SplError
from ..core.keys import digest
from ..home.disk import Disk
from ..net.dialer import Dialer
from ..net.sockets import ListenError, Verifying, client_tls
from . import credentials, jetstream, subjects
from .credentials import Credentials
from .jetstream import Ack, JetStreamError, StoredMessage, StreamState
from .nats import ANSWER_S, Endpoint, Nats, connect, endpoint_of
from .protocol import EngineError, head_of, published, said
from .pump import SinkState
from .reader import LogReader, StoredRecord, seq_in
from .sinks import Sink

POSITION: Final = "Spl-Position"
NAMESPACE: Final = "Spl-Namespace"
THREAD: Final = "Spl-Thread"
POINTER: Final = "Spl-Pointer"
PREVIOUS: Final = "Spl-Previous"
ID: Final = "Nats-Msg-Id"
LAST_ID: Final = "Nats-Expected-Last-Msg-Id"
LAST_SEQ: Final = "Nats-Expected-Last-Sequence"
BATCH_ID: Final = "Nats-Batch-Id"
BATCH_SEQUENCE: Final = "Nats-Batch-Sequence"
BATCH_COMMIT: Final = "Nats-Batch-Commit"
KEYS_ID: Final = "keys:"
STEPS_BACK_MAX: Final = 14
"""Each step back through the stream is twice as long as the last: 16,384 messages in all."""
SIGNERS_MAX: Final = 4096  # whose chains this session sent; of one forgotten the server is asked
TWICE_MAX: Final = 4096  # ids of one session, so that a server that repeats itself fills no memory
CHARS_MAX: Final = 256  # of an id that the stream holds; ours have 64
FRAMES_BYTES: Final = 256 * 1024


class ServerPlace(Protocol):
    """A server, and what it is shown and verified by, as a sink or a carrier names them."""

    @property
    def url(self) -> str:
        """nats://HOST:PORT or tls://HOST:PORT."""

    @property
    def creds(self) -> str:
        """Path of the user's credentials, "" without."""

    @property
    def ca(self) -> str:
        """Path of the authority's certificate, "" for those of the system."""


class Files:
    """What a sink names by path: read at each connection, so a renewed file counts.

    Refusals name no path: they become findings, which every viewer reads.
    """

    def __init__(self, disk: Disk, tls: Verifying | None) -> None:
        """`tls` verifies servers for sinks without an authority of their own."""
        self._disk, self._tls = disk, tls

    def endpoint(self, sink: ServerPlace) -> Endpoint:
        """Return where a server is.  Raises EngineError "sink-auth", ListenError "config-invalid"."""
        host, port, always_tls = endpoint_of(sink.url)
        user = self.user(sink)
        try:
            context = client_tls(Path(sink.ca)) if sink.ca else self._tls and self._tls()
        except ListenError as exc:
            text = "the file of --ca holds no certificate, or cannot be read"
            raise ListenError("config-invalid", text, hint="correct the file of --ca") from exc
        return Endpoint(host, port, always_tls, user, context)

    async def check(self, sink: ServerPlace) -> None:
        """Raise as `endpoint` does, with a step for the operator who names the files now."""
        try:
            await asyncio.to_thread(self.endpoint, sink)
        except SplError as exc:
            if exc.code == "sink-auth":
                exc.hint = "name a user's .creds or nkey seed file that the daemon can read by --creds"
            raise

    def user(self, sink: ServerPlace) -> Credentials | None:
        """Return what a server knows us by, None without.  Raises EngineError "sink-auth"."""
        if not sink.creds:
            return None
        try:
            raw = self._disk.read(Path(sink.creds), credentials.FILE_BYTES_MAX, follow=True)
        except OSError as exc:
            raise EngineError("sink-auth", f"the file of --creds cannot be read: {exc.strerror or 'no file'}") from exc
        if raw is None:
            raise EngineError("sink-auth", "the file of --creds is not there")
        return credentials.read(raw.decode("utf-8", "replace"))


class JetStreamTarget:
    """The stream of one sink."""

    def __init__(
        self, sink: Sink, reader: LogReader, state: SinkState, dialer: Dialer, files: Files, inbox: str
    ) -> None:
        self.sink, self.reader, self.state = sink, reader, state
        self._dialer, self._files, self._inbox = dialer, files, inbox
        self.sent_to = 0
        """The last line that this process sent; 0 before the first.  A stream that is beyond it has other writers."""
        self.confirmed_to = 0
        """The last line that the server acknowledged to this process: where a stream goes on that was emptied."""
        self.seen_seq: int | None = None
        """The end of the stream when this process saw it last.  What our log lacks came behind it from others."""
        self.twice: set[int] = set()
        """Lines whose id the server took for a repeat, as of a sink that took the record from another namespace, or
        one that stands before messages of somebody else."""

    async def open(self) -> "JetStreamSession":
        """Return a session.  Raises EngineError, ListenError."""
        endpoint = await asyncio.to_thread(self._files.endpoint, self.sink)
        nats = await connect(endpoint, self._dialer, self._inbox)
        self.state.far = f"nats-server {nats.version}"
        return JetStreamSession(self, nats)


class JetStreamSession:
    """One connection to the stream."""

    def __init__(self, target: JetStreamTarget, nats: Nats) -> None:
        self.target, self.nats = target, nats
        self._did = target.reader.did()
        self._stream = subjects.stream_of(self._did)
        self._atomic = False
        self._bytes_max = nats.payload_max
        self._seq = 0
        self._last_id = ""
        self._place = 0
        self._signers: dict[str, str] = {}
        """Signer -> digest of the chain that stands in the stream."""
        self._numbers = count(1)

    async def listen(self) -> None:
        """Read what the server sends, for as long as the connection lives."""
        await self.nats.listen()

    async def close(self) -> None:
        """End the connection."""
        await self.nats.close()

    async def resume(self) -> int:
        """Return the line up to which the stream holds our records; make the stream if there is none.

        Raises EngineError "sink-foreign" if its last message, or the stream, is not ours; "sink-refused" if it lacks
        records of before that line.
        """
        sink, found = self.target.sink, await jetstream.state_of(self.nats, self._stream)
        if found is None:
            found = await jetstream.create(self.nats, self._stream, subjects.all_of(self._did))
        if found.subjects != (subjects.all_of(self._did),):
            raise EngineError("sink-foreign", f"stream {self._stream} takes other subjects than ours")
        if found.messages:
            self._place = await self._last_place(found)
            await self._check_namespaces()
        elif found.last_seq:
            # Everything expired or was purged: it is not filled again, for that was somebody's wish.
            saved, _ = self.target.reader.saved(sink) or (0, 0)
            self._place = max(sink.after, saved, self.target.confirmed_to)
        else:
            self._place = sink.after
        if self._place > self.target.reader.last_seq:
            raise EngineError("sink-foreign", f"stream {self._stream} is ahead of our log")
        self._seq = self.target.seen_seq = found.last_seq
        self._atomic = found.atomic
        self._bytes_max = min(self.nats.payload_max, found.message_bytes_max or self.nats.payload_max)
        return self._place

    async def put(self, records: Sequence[StoredRecord]) -> None:
        """Publish records and wait for all acknowledgements.

        Raises EngineError "sink-full", "sink-unreachable", "sink-foreign", "sink-refused".
        """
        await self._learn_chains(records)
        self.target.sent_to = max(self.target.sent_to, records[-1].seq)
        if self._atomic and len(records) > 1 and await self._put_whole(records):
            return
        frames, awaited = list[bytes](), dict[str, int]()
        for record in records:
            reply = self._reply()
            frames.append(self._frame(record, self._chained(self._id_of(record), record.seq), reply))
            awaited[reply] = record.seq
        await self._send(frames)
        await self._acknowledged(awaited)

    # -- what goes out

    async def _put_whole(self, records: Sequence[StoredRecord]) -> bool:
        """Publish records of which all or none are stored; return False if the server refused them as a whole."""
        reply, frames = self._reply(), list[bytes]()
        batch = reply.rpartition(".")[0][-40:] + f"-{next(self._numbers)}"
        for number, record in enumerate(records, 1):
            head = {ID: self._id_of(record), POSITION: f"{self.target.reader.epoch}:{record.seq}",
                    BATCH_ID: batch, BATCH_SEQUENCE: str(number)}  # fmt: skip
            if number == 1:
                head[LAST_SEQ] = str(self._seq)
            if number == len(records):
                head[BATCH_COMMIT] = "1"
            frames.append(self._frame(record, head, reply if BATCH_COMMIT in head else ""))
        await self._send(frames)
        ack = (await self._answers({reply}))[reply]
        if ack.error:
            self._atomic = ack.error == jetstream.BATCH_DUPLICATE  # any other may come with each batch
            return False
        if ack.seq != self._seq + len(records):
            raise EngineError("sink-foreign", f"somebody else writes into {self._stream}")
        self._last_id, self._place = self._id_of(records[-1]), records[-1].seq
        self._stored(ack.seq, self._place)
        return True

    def _stored(self, stream_seq: int, seq: int) -> None:
        """Take a line for held by the stream, as its last message."""
        self._seq = self.target.seen_seq = stream_seq
        self.target.confirmed_to = seq

    def _reply(self) -> str:
        return f"{self.nats.inbox}.a{next(self._numbers)}"

    def _id_of(self, record: StoredRecord) -> str:
        """Return the id of a record's message."""
        again = record.again or record.seq in self.target.twice
        return f"{record.id}:{record.namespace}" if again else record.id

    def _frame(self, record: StoredRecord, head: Mapping[str, str], reply: str) -> bytes:
        """Return the message of a record, or that of a pointer to it, with these headers and its own."""
        head = {**head, PREVIOUS: record.previous, NAMESPACE: record.namespace, THREAD: record.thread}
        subject = subjects.subject_of(self._did, record.namespace, record.thread, self.target.sink.subjects)
        raw, body = head_of(head), record.body
        if len(raw) + len(body) > self._bytes_max:
            raw, body = head_of({**head, POINTER: str(len(body))}), pointer_to(record)
        return published(subject, reply, raw, body)

    async def _send(self, frames: list[bytes]) -> None:
        """Send messages, some at a time, as long as the sink is in force."""
        while frames:
            size, fits = 0, 0
            while fits < len(frames) and (not fits or size + len(frames[fits]) <= FRAMES_BYTES):
                size, fits = size + len(frames[fits]), fits + 1
            self._check_wanted()
            await self.nats.send(frames[:fits])
            del frames[:fits]

    def _chained(self, id_: str, seq: int) -> dict[str, str]:
        """Return the headers that place a message behind the one before."""
        before = {LAST_ID: self._last_id} if self._last_id else {LAST_SEQ: str(self._seq)}
        self._last_id = id_
        self._place = seq
        return {ID: id_, **before, POSITION: f"{self.target.reader.epoch}:{seq}"}

    async def _learn_chains(self, records: Sequence[StoredRecord]) -> None:
        """Publish the key chains of signers that the stream lacks, before their records."""
        for signer in dict.fromkeys(record.signer for record in records):
            chain = self.target.reader.source.chain(signer)
            if chain is None:
                continue
            body = canon.encode(chain.to_json())
            print_ = digest(body)
            if self._signers.get(signer) == print_:
                continue
            subject = subjects.keys_of(self._did, signer)
            held = await jetstream.last_under(self.nats, self._stream, subject)
            if held is None or held.body != body:
                # With the sequence, or after a purge the server would take it for a repeat.
                head = self._chained(f"{KEYS_ID}{print_}:{self._seq}", self._place)
                reply = self._reply()
                await self._send([published(subject, reply, head_of(head), body)])
                await self._acknowledged({reply: self._place})
            if len(self._signers) >= SIGNERS_MAX:
                self._signers.clear()
            self._signers[signer] = print_

    def _check_wanted(self) -> None:
        """Raise unless the sink is in force as it was when this session began: nothing goes out after a withdrawal."""
        if self.target.reader.sink(self.target.sink.name) != self.target.sink:
            raise EngineError("sink-unknown", "the sink was changed")

    async def _answers(self, awaited: Set[str]) -> dict[str, Ack]:
        """Return what came to each of these subjects; anything else is late, from before, and gains no time."""
        acks, loop = dict[str, Ack](), asyncio.get_running_loop()
        until_s = loop.time() + ANSWER_S
        while len(acks) < len(awaited):
            found = await self.nats.next(until_s - loop.time())
            if found is not None and found.subject in awaited and found.subject not in acks:
                acks[found.subject] = jetstream.ack_of(found)
                until_s = loop.time() + ANSWER_S
            elif found is None or loop.time() >= until_s:
                raise EngineError("sink-unreachable", f"publishes are not acknowledged within {ANSWER_S:g} s")
        return acks

    async def _acknowledged(self, awaited: dict[str, int]) -> None:
        """Wait for all answers.  The sequences must follow each other: between them nobody else may have written."""
        acks = await self._answers(awaited.keys())
        for reply, seq in awaited.items():
            ack = acks[reply]
            if ack.error:
                raise _refusal(ack)
            if ack.duplicate and ack.seq != self._seq + 1:
                if len(self.target.twice) >= TWICE_MAX:
                    self.target.twice.clear()
                self.target.twice.update(line for each, line in awaited.items() if acks[each].duplicate)
                raise EngineError("sink-refused", "the stream has this id already; it goes out under another")
            if ack.seq != self._seq + 1:
                raise EngineError("sink-foreign", f"somebody else writes into {self._stream}")
            self._stored(ack.seq, seq)

    # -- where the stream is

    async def _last_place(self, found: StreamState) -> int:
        """Return the position of the newest message that is ours, walking back past those that we lost or know of."""
        seq, step, lost = found.last_seq, 1, False
        for _ in range(STEPS_BACK_MAX):
            message = await self._at(seq, found)
            if message is None:
                return self.target.sink.after
            place = self._place_of(message)
            if place is None and not (lost or message.seq <= self.target.sink.passed or self._may_be_ours(message)):
                hint = f"take the right to publish from others; then: spl sink resume {self.target.sink.name}"
                text = f"message {message.seq} of {self._stream} ({said(message.subject[:80])}) is not ours"
                raise EngineError("sink-foreign", text, hint=hint, stream_seq=message.seq)
            if place is not None:
                if not lost and self.target.sent_to and place > self.target.sent_to:
                    text = f"somebody else writes into {self._stream}"
                    raise EngineError("sink-foreign", text, stream_seq=message.seq)
                return place
            if message.seq <= found.first_seq:
                break
            lost, seq, step = True, max(found.first_seq, message.seq - step), step * 2
        return self.target.sink.after

    async def _check_namespaces(self) -> None:
        """Raise unless the stream ends each namespace of a sink that begins where the log does, up to the position.

        One that was added with more namespaces than filled the stream would leave their older records out.  Of one that
        began before, whatever the stream lacks expired or was purged.
        """
        sink, reader = self.target.sink, self.target.reader
        for name in sink.namespaces if reader.saved(sink) is None else ():
            wanted = reader.last_up_to(name, self._place)
            if wanted <= sink.after:
                continue
            last = await jetstream.last_under(self.nats, self._stream, subjects.namespace_of(self._did, name))
            place = self._place_of(last) if last is not None else 0
            if place is not None and place < wanted:
                again = f"nats stream rm {self._stream}, then: spl sink resume {sink.name}"
                hint = f"to send all again: {again}; to leave them out, add it with --from now after: spl sink remove"
                text = f"the stream lacks older records of namespace {name}, and this sink would go on behind them"
                raise EngineError("sink-refused", text, hint=f"{hint} {sink.name}")

    async def _at(self, seq: int, found: StreamState) -> StoredMessage | None:
        if seq == found.last_seq:
            last = await jetstream.last_under(self.nats, self._stream, subjects.all_of(self._did))
            if last is not None:
                return last
        for each in range(seq, max(found.first_seq, seq - 64) - 1, -1):  # single messages may have been deleted
            message = await jetstream.message_at(self.nats, self._stream, each)
            if message is not None:
                return message
        return None

    def _may_be_ours(self, message: StoredMessage) -> bool:
        """Return whether a message has our form: a key chain, or a record of before our log was set back.

        Our log is set back only while no process has it open, so a record that came since is not ours.
        """
        id_ = message.headers.get(ID, "")
        if message.subject.startswith(f"spl.{subjects.tail_of(self._did)}.{subjects.KEYS}."):
            return id_.startswith(f"{KEYS_ID}{digest(message.body)}:")
        if self.target.seen_seq is not None and message.seq > self.target.seen_seq:
            return False
        place = seq_in(message.headers.get(POSITION, ""), self.target.reader.epoch)
        return place is not None and _names(message.body, id_)

    def _place_of(self, message: StoredMessage) -> int | None:
        """Return the line of a message of ours, by its bytes; None if our log does not hold what it says."""
        reader, id_ = self.target.reader, message.headers.get(ID, "")
        name = message.headers.get(NAMESPACE, "")
        known = len(id_) < CHARS_MAX and name in self.target.sink.namespaces
        held = reader.find(id_.partition(":")[0], name) if known else None
        if held is None:
            return None
        row, raw = held
        if message.body != raw and not (POINTER in message.headers and _names(message.body, id_)):
            return None
        return row.seq


def pointer_to(record: StoredRecord) -> bytes:
    """Return what goes out for a record that is too large."""
    fields = {"id": record.id, "thread": record.thread, "namespace": record.namespace, "bytes": len(record.body)}
    return canon.encode(fields)


def _names(body: bytes, id_: str) -> bool:
    """Return whether a body is a record, or a pointer, of this id."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and value.get("id") == id_.partition(":")[0]


def _refusal(ack: Ack) -> SplError:
    """Return the error of a refused publish."""
    if ack.error in jetstream.FULL:
        return JetStreamError("sink-full", f"the stream takes no more: {ack.text}", ack.error)
    if ack.error in jetstream.WRONG_LAST:
        return JetStreamError("sink-unreachable", "a message was lost; the stream is asked where it is", ack.error)
    if ack.error == jetstream.STREAM_MISSING:
        return JetStreamError("sink-unreachable", "the stream is gone; it is made again", ack.error)
    return JetStreamError("sink-refused", f"the server refuses a message: {ack.text}", ack.error)


def state_json(found: StreamState | None) -> Mapping[str, object] | None:
    """Return a stream for people and programs."""
    if found is None:
        return None
    return {
        "messages": found.messages, "bytes": found.bytes, "first_seq": found.first_seq, "last_seq": found.last_seq,
        "created_at": found.created,
    }  # fmt: skip
