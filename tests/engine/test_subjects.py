"""Names in the engine: one token for any text, no two texts for one token."""

import json
from collections.abc import Awaitable, Callable
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from spl.engine import credentials, jetstream, subjects
from spl.engine.credentials import Credentials
from spl.engine.nats import Endpoint, Nats, connect
from spl.engine.protocol import EngineError, published
from spl.net.dialer import Dialer
from spl.sync.supervise import run_together
from tests.engine.nkeys import seed_text
from tests.engine.servers import NatsServer

DID = "did:sync:instance:hub-0123456789abcdef01234567"
MUSIC, ART = subjects.consumer_of("pair_1", "music"), subjects.consumer_of("pair_1", "art")


@settings(max_examples=50)
@given(st.text(max_size=300), st.text(max_size=300))
def test_a_token_has_no_separator_and_stands_for_one_text(one: str, other: str) -> None:
    made = subjects.token(one)
    assert 0 < len(made) <= subjects.TOKEN_BYTES
    assert not set(made) & set(".*> \t\r\n")
    assert (made == subjects.token(other)) is (one == other)


def test_what_is_named_how() -> None:
    assert subjects.token("org/a b") == "org=2Fa=20b"
    assert subjects.token("x" * 121).startswith("=h")
    assert subjects.stream_of(DID) == "SPL_hub_0123456789abcdef01234567"
    assert subjects.subject_of(DID, "org/x", "th*", "thread") == "spl.0123456789abcdef01234567.org=2Fx.th=2A"
    shard = subjects.subject_of(DID, "org/x", "th*", "shard").rpartition(".")[2]
    assert 0 <= int(shard) < subjects.SHARDS


def test_permissions_name_the_filter_of_each_namespace_and_nothing_wider() -> None:
    rules = subjects.permissions(DID, ("music", "art"), "pair_1")
    stream, tail = subjects.stream_of(DID), subjects.tail_of(DID)
    assert f"$JS.API.CONSUMER.CREATE.{stream}.{MUSIC}.spl.{tail}.music.>" in rules["publish"]
    assert f"$JS.API.CONSUMER.CREATE.{stream}.{ART}.spl.{tail}.art.>" in rules["publish"]
    assert rules["subscribe"] == ["_INBOX_pair_1.>"]
    assert not [subject for subject in rules["publish"] if "MSG.GET" in subject or "PURGE" in subject]


async def refused(port: int, user: Credentials, talk: Callable[[Nats], Awaitable[object]]) -> bool:
    """Return whether the server refuses what `talk` says."""
    nats = await connect(Endpoint("127.0.0.1", port, False, user), Dialer(None), "_INBOX_pair_1")
    try:
        await run_together(talk(nats), nats.listen())
    except EngineError:
        return True
    finally:
        await nats.close()
    return False


def users_of(hub: Credentials, reader: Credentials) -> list[dict[str, object]]:
    """Return two users of a server: one who may do everything, and a reader of the namespace music."""
    rules = subjects.permissions(DID, ("music",), "pair_1")
    return [
        {"nkey": credentials.public_text(hub.key.public)},
        {"nkey": credentials.public_text(reader.key.public), "permissions": rules},
    ]


async def test_a_server_holds_a_reader_to_the_printed_permissions(tmp_path: Path) -> None:
    stream, music, art = subjects.stream_of(DID), subjects.namespace_of(DID, "music"), subjects.namespace_of(DID, "art")
    hub, reader = (credentials.read(seed_text(bytes([number]) * 32)) for number in (1, 2))
    config = f"authorization: {json.dumps({'users': users_of(hub, reader)})}\n"
    server = NatsServer(tmp_path / "nats", config=config).start()

    async def fill(nats: Nats) -> None:
        await jetstream.create(nats, stream, subjects.all_of(DID))
        for name in ("art", "music"):
            await nats.request(f"spl.{subjects.tail_of(DID)}.{name}.1", name.encode())

    def create(api: str, wanted: str) -> Callable[[Nats], Awaitable[object]]:
        config = {"durable_name": MUSIC, "ack_policy": "explicit", **({"filter_subject": wanted} if wanted else {})}
        return lambda nats: jetstream.ask(nats, f"CONSUMER.{api}", {"stream_name": stream, "config": config})

    async def read(nats: Nats) -> None:
        pull = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{MUSIC}"
        await nats.send((published(pull, f"{nats.inbox}.m", b"", b'{"batch":1,"expires":5000000000}'),))
        found = await nats.next(5.0)
        assert found is not None
        assert found.body == b"music"

    async def subscribe(nats: Nats) -> None:
        await nats.send((b"SUB spl.> 9\r\n",))
        await nats.request(f"$JS.API.CONSUMER.INFO.{stream}.{MUSIC}")

    named = f"CREATE.{stream}.{MUSIC}"
    try:
        assert not await refused(server.port, hub, fill)
        assert await refused(server.port, reader, create(f"{named}.{music}", art)), "another filter in the body"
        assert not await refused(server.port, reader, create(f"{named}.{music}", music))
        assert not await refused(server.port, reader, read)
        for talk in (
            create(f"{named}.{art}", art), create(named, ""), subscribe,
            create(f"DURABLE.CREATE.{stream}.{MUSIC}", art),
            lambda nats: jetstream.message_at(nats, stream, 1),
            lambda nats: nats.request(f"$JS.API.DIRECT.GET.{stream}", b'{"seq":1}'),
            lambda nats: jetstream.ask(nats, f"STREAM.PURGE.{stream}"),
            lambda nats: nats.request(f"spl.{subjects.tail_of(DID)}.music.1", b"forged"),
            lambda nats: jetstream.delete_consumer(nats, stream, ART),
        ):  # fmt: skip
            assert await refused(server.port, reader, talk)
        assert not await refused(server.port, reader, lambda nats: jetstream.delete_consumer(nats, stream, MUSIC))
    finally:
        server.end()
