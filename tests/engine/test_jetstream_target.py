"""Records into real servers: the stream is the log, whatever happens to either."""

import asyncio
import base64
import json
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trustme

from spl.core.keys import SecretKey
from spl.core.record import record
from spl.engine import credentials, jetstream, jetstream_target, nats, subjects
from spl.engine.jetstream import StoredMessage
from spl.engine.jetstream_target import JetStreamTarget
from spl.engine.protocol import Delivery, EngineError
from spl.engine.pump import SinkState
from spl.home.writes import Arrive
from tests.engine.nkeys import encoded, seed_text
from tests.engine.servers import (
    NatsServer,
    caught_up,
    failing,
    held,
    info,
    logged,
    records_in,
    scripted,
    serving,
    stored,
    until_held,
)  # fmt: skip
from tests.nodes import Node
from tests.store_kit import set_views
from tests.waiting import turns

FAN = {"name": "fan", "namespaces": ("default",)}
ODD = ("a*b", "a>", "a b", "x" * 256, "ä.ö", "*", ">", "=2A", "$JS.API")


async def test_the_stream_holds_the_envelopes_of_the_log_in_its_order(node: Node, server: NatsServer) -> None:
    for number in range(600):
        node.emit(str(number), thread=ODD[number % len(ODD)], ns="music" if number % 3 else "")
    node.emit("of another namespace", ns="other")
    async with serving(node) as service:
        await service.add({**FAN, "url": server.url, "namespaces": ("default", "music")}, from_now=False)
        await caught_up(service)
        node.emit("later")
        await held(server, node, "default", "music")
    messages = await server.messages(node)
    keys, *rest = messages
    assert keys.subject == subjects.keys_of(node.did, node.did)
    assert json.loads(keys.body) == node.chain.to_json()
    for message in rest:
        envelope = record.parse(message.body, node.limits)
        assert message.headers["Nats-Msg-Id"] == envelope.id
        assert message.headers["Spl-Thread"] == envelope.record["thread"]
        assert message.subject.count(".") == 3, "an odd thread made no token of its own"
        assert not set(message.subject) & set("*> ")
    epoch = node.home.store.epoch
    rows = node.home.store.index.after_any(["n:default", "n:music"], 0, 1000)
    assert [message.headers["Spl-Position"] for message in rest] == [f"{epoch}:{row.seq}" for row in rows]


async def test_an_old_server_takes_the_same(node: Node, old_server: NatsServer) -> None:
    for number in range(300):
        node.emit(str(number), thread=ODD[number % len(ODD)])
    async with serving(node) as service:
        await service.add({**FAN, "url": old_server.url, "subjects": "thread"}, from_now=False)
        await held(old_server, node)
    assert len({message.subject for message in await old_server.messages(node)}) == len(ODD) + 1


async def granting(server: NatsServer, node: Node, grants: bool) -> None:
    """Make a node's stream, if there is none, and let it grant batches or not, as its operator may."""
    async with server.client() as client:
        name = subjects.stream_of(node.did)
        if await jetstream.state_of(client, name) is None:
            await jetstream.create(client, name, subjects.all_of(node.did))
        config = (await jetstream.ask(client, f"STREAM.INFO.{name}"))["config"]
        await jetstream.ask(client, f"STREAM.UPDATE.{name}", {**config, "allow_atomic": grants})


def batched(messages: Sequence[StoredMessage]) -> int:
    return sum("Nats-Batch-Id" in message.headers for message in messages)


async def test_records_go_as_a_whole_where_the_stream_grants_it_and_one_by_one_where_not(
    node: Node, server: NatsServer, old_server: NatsServer
) -> None:
    await granting(server, node, True)
    await granting(old_server, node, True)
    async with serving(node) as service:
        for number in range(300):
            node.emit(str(number))
        await service.add({**FAN, "url": server.url}, from_now=False)
        await service.add({**FAN, "name": "old", "url": old_server.url}, from_now=False)
        await held(server, node)
        await held(old_server, node)
        assert batched(await server.messages(node)) == 300
        assert not batched(await old_server.messages(node))
        await service.act("fan", "pause")
        await granting(server, node, False)
        for number in range(300):
            node.emit(f"not granted {number}")
        await service.act("fan", "resume")
        await held(server, node)
    assert batched(await server.messages(node)) == 300


async def test_a_batch_that_is_refused_goes_one_by_one(node: Node, server: NatsServer) -> None:
    async with serving(node) as service:
        node.emit("first")
        await granting(server, node, True)
        await service.add({**FAN, "url": server.url}, from_now=False)
        await caught_up(service)
        await service.act("fan", "pause")
        sink = service.named("fan")
        target = service._target(sink, SinkState())
        assert isinstance(target, JetStreamTarget)
        session = await target.open()
        async with asyncio.TaskGroup() as tasks:
            listening = tasks.create_task(session.listen())
            place = await session.resume()
            for number in range(5):
                node.emit(str(number))
            await granting(server, node, False)
            await session.put(service.reader.batch(sink, place).records)
            listening.cancel()
        await session.close()
        await held(server, node)
    assert not batched(await server.messages(node))


async def test_a_new_process_goes_on_where_the_stream_ends(node: Node, server: NatsServer) -> None:
    async with serving(node) as service:
        await service.add({**FAN, "url": server.url}, from_now=False)
        node.emit("one")
        await caught_up(service)
    node.emit("two")
    async with serving(node) as service:
        assert (await caught_up(service))["sent_records"] == 1
    await held(server, node)
    assert len(await server.messages(node)) == 3


async def test_from_now_leaves_out_what_there_is(node: Node, server: NatsServer) -> None:
    node.emit("old")
    async with serving(node) as service:
        await service.add({**FAN, "url": server.url}, from_now=True)
        sink = await caught_up(service)
        assert sink["sent_records"] == 0
        new = node.emit("new")
        await caught_up(service)
        await until_held(server, node, [new.raw])


async def test_a_stream_that_was_set_back_or_deleted_is_filled_again(
    node: Node, own_server: NatsServer, tmp_path: Path
) -> None:
    async with serving(node) as service:
        await service.add({**FAN, "url": own_server.url}, from_now=False)
        for number in range(40):
            node.emit(str(number))
        await held(own_server, node)
        own_server.end(signal.SIGTERM)
        shutil.copytree(own_server.store, tmp_path / "copy")
        own_server.start()
        for number in range(300):
            node.emit(f"more {number}")
        await held(own_server, node)
        own_server.end()  # as power does: with whatever was written
        own_server.set_back(tmp_path / "copy")
        own_server.start()
        await held(own_server, node)
        await own_server.ask(f"STREAM.DELETE.{subjects.stream_of(node.did)}")
        node.emit("after it was deleted")
        await held(own_server, node)


async def test_a_purged_stream_is_not_filled_again(node: Node, server: NatsServer) -> None:
    stream = subjects.stream_of(node.did)
    async with serving(node) as service:
        await service.add({**FAN, "url": server.url}, from_now=False)
        node.emit("before")
        await caught_up(service)
        await server.ask(f"STREAM.PURGE.{stream}")
        after = node.emit("after")
        await until_held(server, node, [after.raw])
    await server.ask(f"STREAM.PURGE.{stream}")
    async with serving(node) as service:
        last = node.emit("a process later")
        await until_held(server, node, [last.raw])


async def test_another_writer_stops_the_sink_until_the_operator_passes_it_over(node: Node, server: NatsServer) -> None:
    async with serving(node) as service:
        await service.add({**FAN, "url": server.url}, from_now=False)
        node.emit("ours")
        await caught_up(service)
        async with server.client() as client:
            await client.request(f"spl.{subjects.tail_of(node.did)}.default.7", b"theirs")
        node.emit("next")
        sink = await failing(service, "sink-foreign")
        assert "spl sink resume fan" in str(sink["fix"])
        assert len(records_in(await server.messages(node))) == 2, "nothing was sent behind it"
        await service.act("fan", "resume")
        await caught_up(service)
        assert [body for body in records_in(await server.messages(node)) if body != b"theirs"] == logged(node)


async def test_a_full_stream_goes_on_once_it_has_room(node: Node, server: NatsServer) -> None:
    stream = subjects.stream_of(node.did)
    async with serving(node) as service:
        await service.add({**FAN, "url": server.url}, from_now=False)
        node.emit("first")
        await caught_up(service)
        config = (await server.ask(f"STREAM.INFO.{stream}"))["config"]
        await server.ask(f"STREAM.UPDATE.{stream}", {**config, "discard": "new", "max_msgs": 5})
        for number in range(20):
            node.emit(str(number))
        await failing(service, "sink-full")
        await server.ask(f"STREAM.UPDATE.{stream}", {**config, "discard": "new", "max_msgs": 100})
        await service.act("fan", "resume")  # now, and not after the delay
        await held(server, node)


async def test_what_two_namespaces_hold_goes_out_for_both(node: Node, server: NatsServer) -> None:
    """As many as would take hours, if each made a connection fail."""
    for number in range(20):
        made = node.emit(str(number))
        node.write(Arrive(made, "music", "pair_x"))
    async with serving(node) as service:
        await service.add({**FAN, "url": server.url, "namespaces": ("default", "music")}, from_now=False)
        await held(server, node, "default", "music")
    found = await server.messages(node)
    assert [message.headers["Spl-Namespace"] for message in found[1:]] == ["default", "music"] * 20


async def test_a_withdrawn_sink_sends_nothing_more(node: Node, server: NatsServer) -> None:
    async with serving(node) as service:
        await service.add({**FAN, "url": server.url}, from_now=False)
        first = node.emit("before")
        await caught_up(service)
        await service.add({"name": "beside", "url": "exec:cat", "namespaces": ("default",)}, from_now=True)
        await service.act("fan", "remove")
        node.emit("after")
        await caught_up(service, "beside")  # what was written after the removal has been sent where it still goes
    assert records_in(await server.messages(node)) == [first.raw]


async def test_an_archived_namespace_holds_its_records_back(node: Node, server: NatsServer) -> None:
    async with serving(node) as service:
        await service.add({**FAN, "url": server.url, "namespaces": ("default", "music")}, from_now=False)
        await caught_up(service)
        await service.act("fan", "pause")
        node.emit("kept", ns="music")
        spaces = dict(node.home.views.namespaces)
        set_views(node.home, namespaces={name: space for name, space in spaces.items() if name != "music"})
        await service.act("fan", "resume")
        await failing(service, "sink-refused")
        assert records_in(await server.messages(node)) == []
        set_views(node.home, namespaces=spaces)
        node.emit("and what is behind it")
        await held(server, node, "default", "music")


async def test_a_server_that_was_stopped_or_killed_gets_the_rest(
    node: Node, own_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nats, "ASK_S", 0.2)
    monkeypatch.setattr(nats, "SILENCE_S", 0.6)
    monkeypatch.setattr("spl.engine.pump.BACKOFF_MAX_S", 0.2)
    async with serving(node) as service:
        await service.add({**FAN, "url": own_server.url}, from_now=False)
        for turn in range(3):
            for number in range(100):
                node.emit(f"{turn} {number}")
            own_server.end()
            node.emit("while it is gone")
            await failing(service, "sink-unreachable")
            own_server.start()
        await held(own_server, node)
        assert own_server.process is not None
        own_server.process.send_signal(signal.SIGSTOP)
        node.emit("while it is stopped")
        await failing(service, "sink-unreachable")
        own_server.process.send_signal(signal.SIGCONT)
        await held(own_server, node)


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[NatsServer]:
    """A server with TLS, one user, and a bound of 20 kB; beside it ca.pem, and the seed of the user and another."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    for name, number in (("seed", 7), ("wrong", 8)):
        (tmp_path / name).write_text(seed_text(bytes([number]) * 32) + "\n")
    user = credentials.public_text(SecretKey(b"\x07" * 32).public)
    config = f"""
        tls {{ cert_file: "{tmp_path}/cert.pem", key_file: "{tmp_path}/key.pem" }}
        authorization {{ users: [{{ nkey: "{user}" }}] }}
        max_payload: 20KB
    """
    made = NatsServer(tmp_path / "nats", config=config).start()
    yield made
    made.end()


async def test_credentials_and_tls_are_checked(node: Node, guarded: NatsServer, tmp_path: Path) -> None:
    ca, node_files = str(tmp_path / "ca.pem"), {name: str(tmp_path / name) for name in ("seed", "wrong")}
    node.emit("one")
    async with serving(node) as service:
        for files, code in (
            ({"creds": node_files["seed"]}, "sink-unreachable"),
            ({"creds": node_files["wrong"], "ca": ca}, "sink-auth"),
            ({"ca": ca}, "sink-auth"),
        ):
            await service.add({**FAN, "url": guarded.url, **files}, from_now=False)
            sink = await failing(service, code)
            assert "TLS" in str(sink["error"]) or code == "sink-auth"
            await service.act("fan", "remove")
        await service.add({**FAN, "url": guarded.url, "creds": node_files["seed"], "ca": ca}, from_now=False)
        assert (await caught_up(service))["sent_records"] == 1


def claims(
    kind: str, subject: str, issuer: SecretKey, issuer_prefix: int, fields: dict[str, Any], ends_s: int = 0
) -> str:
    """Return a JWT of NATS."""

    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    now_s = int(time.time())
    body = {"jti": f"{kind}-{ends_s}", "iat": now_s, "iss": key_text(issuer_prefix, issuer.public), "name": kind,
            "sub": subject, "nats": {**fields, "type": kind, "version": 2},
            **({"exp": now_s + ends_s} if ends_s else {})}  # fmt: skip
    signed = f"{part({'typ': 'JWT', 'alg': 'ed25519-nkey'})}.{part(body)}"
    return f"{signed}.{base64.urlsafe_b64encode(issuer.sign(signed.encode())).rstrip(b'=').decode()}"


def key_text(prefix: int, key: bytes) -> str:
    """Return a public key as NATS writes it: with 14 that of an operator, with 0 that of an account."""
    return encoded(bytes([prefix << 3]) + key)


async def test_a_jwt_that_has_expired_or_does_so_while_connected_is_named(node: Node, tmp_path: Path) -> None:
    operator, account, user = (SecretKey(bytes([number]) * 32) for number in (21, 22, 23))
    name, system = key_text(0, account.public), key_text(0, user.public)  # any key names an account
    free = dict.fromkeys(("subs", "data", "payload", "conn", "leaf", "imports", "exports"), -1)
    stored = dict.fromkeys(("mem_storage", "disk_storage", "streams", "consumer"), -1)
    config = f"""
        operator: {claims("operator", key_text(14, operator.public), operator, 14, {})}
        system_account: {system}
        resolver: MEMORY
        resolver_preload: {{
            {name}: {claims("account", name, operator, 14, {"limits": {**free, **stored}})}
            {system}: {claims("account", system, operator, 14, {"limits": free})}
        }}
    """
    server = NatsServer(tmp_path / "nats", config=config).start()
    try:
        async with serving(node) as service:
            for ends_s, file in ((-60, "past"), (2, "soon")):  # the server ends the connection of the second
                jwt = claims("user", credentials.public_text(user.public), account, 0,
                             {"subs": -1, "data": -1, "payload": -1}, ends_s)  # fmt: skip
                path = tmp_path / file
                path.write_text(f"{jwt}\n{seed_text(bytes([23]) * 32)}\n")
                await service.add({**FAN, "url": server.url, "creds": str(path)}, from_now=False)
                sink = await failing(service, "sink-auth")
                assert jwt not in str(sink)
                await service.act("fan", "remove")
                node.emit("goes on")
    finally:
        server.end()


async def test_a_record_over_the_servers_bound_goes_as_a_pointer(
    node: Node, guarded: NatsServer, tmp_path: Path
) -> None:
    files = {"creds": str(tmp_path / "seed"), "ca": str(tmp_path / "ca.pem")}
    small, large = node.emit("small"), node.emit("x" * 30_000)
    async with serving(node) as service:
        await service.add({**FAN, "url": guarded.url, **files}, from_now=False)
        await caught_up(service)
        assert (await service.test("fan"))["takes_every_record"] is False
        sink = service.named("fan")
        target = service._target(sink, service._states[sink.place_name])
        assert isinstance(target, JetStreamTarget)
        session = await target.open()
        async with asyncio.TaskGroup() as tasks:
            listening = tasks.create_task(session.listen())
            messages = await stored(session.nats, subjects.stream_of(node.did))
            last = node.home.store.index.last("n:default")
            assert last is not None
            assert await session.resume() == last.seq, "a pointer is a position too"
            listening.cancel()
        await session.close()
    pointer = {"bytes": len(large.raw), "id": large.id, "namespace": "default", "thread": "th"}
    assert messages[1].body == small.raw
    assert json.loads(messages[2].body) == pointer


async def test_a_server_that_answers_wrongly_is_named_and_the_log_goes_on(node: Node) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(info())
        await reader.readuntil(b"PING\r\n")
        writer.write(b"PONG\r\n")
        while line := await reader.readline():
            if line.startswith(b"PUB $JS.API"):
                reply = line.split()[2]
                writer.write(b"MSG %b 1 2\r\n[]\r\n" % reply)

    async with scripted(talk) as port, serving(node) as service:
        await service.add({**FAN, "url": f"nats://127.0.0.1:{port}"}, from_now=False)
        node.emit("goes on")
        await failing(service, "sink-refused")


async def test_what_answers_nothing_gains_a_server_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream of junk has no end, so without a deadline this had none either."""

    async def junk(_: float) -> Delivery:
        await turns()
        return Delivery("_INBOX.me.zz", "", b"", b"{}")

    monkeypatch.setattr(jetstream_target, "ANSWER_S", 0.01)
    session: Any = object.__new__(jetstream_target.JetStreamSession)
    session.nats = SimpleNamespace(next=junk)
    with pytest.raises(EngineError) as caught:
        await session._answers({"_INBOX.me.a1"})
    assert caught.value.code == "sink-unreachable"


async def test_a_subject_that_a_server_makes_up_can_be_shown(node: Node) -> None:
    said = {
        "INFO": {"config": {"subjects": [subjects.all_of(node.did)]}, "created": "\ud800",
                 "state": {"messages": 1, "first_seq": 1, "last_seq": 1, "bytes": 9}},
        "MSG": {"message": {"subject": "\ud800\x1b[2J", "seq": 1, "data": "eHg="}},
    }  # fmt: skip

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(info(version="\ud800"))
        await reader.readuntil(b"PING\r\n")
        writer.write(b"PONG\r\n")
        while line := await reader.readline():
            if line.startswith(b"PUB $JS.API"):
                body = json.dumps(said["MSG" if b".MSG." in line else "INFO"]).encode()
                writer.write(b"MSG %b 1 %d\r\n%b\r\n" % (line.split()[2], len(body), body))

    async with scripted(talk) as port, serving(node) as service:
        await service.add({**FAN, "url": f"nats://127.0.0.1:{port}"}, from_now=False)
        sink = await failing(service, "sink-foreign")
        assert "\\ud800\\u001b[2J" in str(sink["error"])
        json.dumps(service.to_json(service.named("fan")), ensure_ascii=False).encode()
