"""thread-diff: only what differs, exit 3; equal is silence; an id that is nowhere exits 6."""

from pathlib import Path
from typing import Any

import pytest

from spl.core.limits import Limits
from spl.core.pair.diff import Transition
from spl.core.record import record
from spl.core.record.record import Envelope, Sig
from spl.core.record.snapshot import SnapshotHeader
from tests.cli.conftest import BOB, Daemon, Run, error, listed

LIMITS = Limits()


def made(n: int, thread: str = "th", **more: Any) -> Envelope:
    fields = record.check(
        {"act": "DO", "actor": "did:sync:user:a", "body": {"n": n}, "clock": n, "thread": thread, **more}, LIMITS
    )
    id_, text = record.identify(fields, LIMITS)
    return record.seal(fields, id_, text, Sig("did:x", "zkey", bytes(64)))


def text(*envelopes: Envelope) -> bytes:
    return SnapshotHeader("", "", len(envelopes), "0" * 64).encode() + b"".join(one.raw + b"\n" for one in envelopes)


def raw(data: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(data), data)


def shown(one: Envelope) -> dict[str, Any]:
    return {"object": "record", "id": one.id, **one.record, "sequence": 1, "vouched_by": "did:x"}


def test_two_files_show_what_only_one_has(spl: Run, home: Path) -> None:
    """Offline: no daemon is asked."""
    a, b = home / "a", home / "b"
    a.write_bytes(text(made(1), made(2)))
    b.write_bytes(text(made(2), made(3)))
    result = spl("debug", "thread-diff", str(a), str(b))
    assert result.code == 3
    assert [line.split()[:2] for line in result.out.splitlines()[1:]] == [["A", made(1).id], ["B", made(3).id]]
    equal = spl("debug", "thread-diff", str(a), str(a))
    assert (equal.code, equal.out) == (0, "")
    data = spl("debug", "thread-diff", str(a), str(b), "-o", "json").data
    assert [(row["only_in"], row["clock"]) for row in data] == [("A", 1), ("B", 3)]


def test_a_damaged_file_is_no_evidence(spl: Run, home: Path) -> None:
    a, b = home / "a", home / "b"
    a.write_bytes(text(made(1)))
    b.write_bytes(text(made(1)).replace(b'"n":1', b'"n":2'))
    result = spl("debug", "thread-diff", str(a), str(b))
    assert result.code == 10
    assert "[snapshot-malformed]" in result.err


def test_two_threads_compare_by_content(spl: Run, daemon: Daemon) -> None:
    daemon.answers["GET", "/v1/threads/one/snapshot"] = raw(text(made(1, "one"), made(2, "one")))
    daemon.answers["GET", "/v1/threads/two/snapshot"] = raw(text(made(2, "two")))
    result = spl("debug", "thread-diff", "one", "two", "-o", "json")
    assert (result.code, [row["id"] for row in result.data]) == (3, [made(1, "one").id])
    daemon.answers["GET", "/v1/threads/none/snapshot"] = raw(text())
    assert spl("debug", "thread-diff", "one", "none").code == 6


def test_two_records_show_their_fields(spl: Run, daemon: Daemon) -> None:
    one, other = made(1), made(1, act="KNOW")
    for item in (one, other):
        daemon.answers["GET", f"/v1/records/{item.id}"] = shown(item)
    result = spl("debug", "thread-diff", one.id, other.id)
    assert result.code == 3
    assert [line.split() for line in result.out.splitlines()] == [
        ["FIELD", "A", "B"], ["act", '"DO"', '"KNOW"'], ["id", f'"{one.id}"', f'"{other.id}"']
    ]  # fmt: skip
    assert spl("debug", "thread-diff", one.id, one.id).code == 0
    for item in (one, other):
        daemon.answers["GET", f"/v1/records/{item.id[:16]}"] = shown(item)
    assert spl("debug", "thread-diff", one.id[:16], other.id[:16]).out == result.out


def test_an_id_that_is_nowhere_names_who_was_asked(spl: Run, daemon: Daemon, home: Path) -> None:
    one, other = made(1), made(2)
    missing = (404, error("not-found", "there is no such record"))
    daemon.answers["GET", f"/v1/records/{one.id}"] = shown(one)
    daemon.answers["GET", f"/v1/records/{other.id}"] = missing
    asked = {"pair_id": "pair_00000001", "peer_did": BOB, "code": "connect", "message": "m"}
    daemon.answers["POST", "/v1/federation/history"] = listed(asked)
    result = spl("debug", "thread-diff", one.id, other.id)
    assert result.code == 6
    assert f"{BOB} connect" in result.err
    found = home / "found"
    found.write_bytes(text(other))
    assert spl("debug", "thread-diff", one.id, other.id, "--from", str(found)).code == 3
    both = home / "both"
    both.write_bytes(text(one))
    calls = len(daemon.calls)
    assert spl("debug", "thread-diff", one.id, other.id, "--from", str(found), "--from", str(both)).code == 3
    assert len(daemon.calls) == calls


def test_what_a_peer_leaves_out_is_not_missed(
    spl: Run, daemon: Daemon, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peer tells its newest transitions; the comparison begins where they begin, and says so."""
    body = {"pair_id": "pair_00000001"}
    own = [made(n, "th_federation_pairs", body=body) for n in range(3)]
    told = [
        Transition(item.id, "pair_pause.v1", f"2026-11-23T0{n}:00:00.000Z", "did:x", "", "paused", "pause")
        for n, item in enumerate(own)
    ]
    monkeypatch.setattr("spl.core.pair.diff.history", lambda records, pair_id: told)
    local = home / "local"
    local.write_bytes(text(*own))
    last = {**told[2].to_json(), "id": "ab" * 32, "actor": BOB}
    daemon.answers["GET", f"/v1/records/{last['id']}"] = (404, error("not-found", "there is no such record"))
    answer = {"pair_id": "pair_00000001", "peer_did": BOB, "transitions": [last], "omitted": 2}
    daemon.answers["POST", "/v1/federation/history"] = listed(answer)
    words = ("debug", "thread-diff", own[2].id, last["id"], "--from", str(local))
    result = spl(*words)
    assert "2 older transitions were left out" in result.err
    assert (result.code, result.out) == (0, "")
    daemon.answers["POST", "/v1/federation/history"] = listed({**answer, "omitted": 0})
    assert spl(*words).code == 3


@pytest.mark.parametrize("answer", [{"transitions": 7}, {"transitions": [{"id": "x"}]}])
def test_a_malformed_history_is_refused(spl: Run, daemon: Daemon, answer: dict[str, Any]) -> None:
    for item in (made(1), made(2)):
        daemon.answers["GET", f"/v1/records/{item.id}"] = (404, error("not-found", "x"))
    daemon.answers["POST", "/v1/federation/history"] = listed({"pair_id": "p", "peer_did": BOB, **answer})
    assert spl("debug", "thread-diff", made(1).id, made(2).id).code == 9


def test_a_record_compares_with_a_record(spl: Run, daemon: Daemon) -> None:
    assert spl("debug", "thread-diff", made(1).id, "th").code == 2


def test_a_pairs_part_of_the_log_of_all_pairs_is_written(spl: Run, daemon: Daemon) -> None:
    """What is handed to the other side says nothing of other peers."""
    thread, pair_id = "th_federation_pairs", "pair_00000001"
    mine, other = (made(n, thread, body={"pair_id": each}) for n, each in ((1, pair_id), (2, "pair_00000002")))
    daemon.answers["GET", f"/v1/threads/{thread}/snapshot"] = raw(text(mine, other, made(3, thread)))
    daemon.answers["GET", "/v1/federation/pairs/bob"] = {"object": "pair", "pair_id": pair_id}
    result = spl("thread", "snapshot", thread, "--pair", "bob")
    header, line = result.out.splitlines()
    assert (result.code, line) == (0, mine.raw.decode())
    assert '"count":1,' in header
    assert spl("thread", "snapshot", "th_other", "--pair", "bob").code == 2
    assert spl("thread", "snapshot", "--all", "--pair", "bob").code == 2
