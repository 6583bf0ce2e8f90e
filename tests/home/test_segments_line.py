"""Promises of the log's line: exact bytes, a hash that covers everything before, one bad byte costs one line."""

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spl.home.segments import (
    RUN_START,
    Entry,
    LineError,
    RunChain,
    encode,
    encode_header,
    entry_of,
    parse,
    parse_header,
)
from tests.store_kit import AT_MS, note, record, shown


def test_a_line_has_exactly_these_bytes() -> None:
    payload = b'{"pair":"pair_1","seq":7}'
    raw, run, head = encode(Entry("pos", payload, pair="pair_1"), 12, AT_MS, "ab" * 16)
    prefix = b'{"k":"pos","seq":12,"at":1763877600123,"from":"local",'
    tail = b'"body":' + payload + b"}"
    expected = hashlib.sha256(bytes.fromhex("ab" * 16) + prefix + tail).digest()[:16].hex()
    assert raw == prefix + b'"run":"' + expected.encode() + b'",' + tail + b"\n"
    assert run == expected
    assert raw[head : head + len(payload)] == payload
    full, _, _ = encode(record(1, ns='te"am'), 1, 5, RUN_START)
    assert full.startswith(b'{"k":"rec","seq":1,"at":5,"from":"local","ns":"te\\"am","own":true,"run":"')
    assert list(json.loads(full)) == ["k", "seq", "at", "from", "ns", "own", "run", "env"]


@given(
    st.text(max_size=20),
    st.text(max_size=20),
    st.booleans(),
    st.integers(0, 2**53),
    st.sampled_from(["rec", "pos", "odd"]),
)
def test_what_was_appended_is_read_back(origin: str, ns: str, own: bool, at_ms: int, kind: str) -> None:
    try:
        (origin + ns).encode()
    except UnicodeEncodeError:
        return
    base = record(3, text=',"run":"' + "0" * 32 + '","env":') if kind == "rec" else note(kind, pair="pair_x")
    entry = Entry(
        kind, base.payload, origin, ns, own, base.id, base.thread, base.actor, base.clock, base.voucher, base.pair
    )
    raw, run, head = encode(entry, 9, at_ms, RUN_START)
    line = parse(raw[:-1])
    assert (line.kind, line.seq, line.at_ms, line.origin, line.ns, line.own, line.run) == (
        kind,
        9,
        at_ms,
        origin,
        ns,
        own,
        run,
    )
    assert line.payload == entry.payload == raw[head : head + len(entry.payload)]
    assert entry_of(line) == entry


def test_a_header_with_any_byte_changed_is_damaged_and_a_later_format_is_newer() -> None:
    raw = encode_header("ab" * 16, 5, "cd" * 16)[:-1]
    header = parse_header(raw)
    assert (header.format, header.epoch, header.seq, header.run) == (1, "ab" * 16, 5, "cd" * 16)
    assert list(json.loads(raw)) == ["k", "format", "epoch", "seq", "run", "sum"]
    for at in range(len(raw)):
        with pytest.raises(LineError) as caught:
            parse_header(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
        assert caught.value.code == "store-damaged"
    text = raw.split(b',"sum"')[0].replace(b'"format":1', b'"format":2')
    with pytest.raises(LineError) as caught:
        parse_header(text + b',"sum":"' + hashlib.sha256(text).hexdigest()[:32].encode() + b'"}')
    assert caught.value.code == "store-newer"


def chained(count: int) -> list[bytes]:
    lines, run = [], RUN_START
    for seq in range(1, count + 1):
        raw, run, _ = encode(record(seq), seq, AT_MS, run)
        lines.append(raw[:-1])
    return lines


def test_every_changed_byte_costs_its_line_and_at_most_the_next() -> None:
    lines = chained(5)
    digits = lines[1].index(b'"run":"') + len(b'"run":"')
    for at in range(len(lines[1])):
        hit = lines[1][:at] + bytes([lines[1][at] ^ 2]) + lines[1][at + 1 :]
        chain = RunChain(1, RUN_START)
        seqs = [line.seq for raw in [lines[0], hit, *lines[2:]] if (line := chain.judge(raw))]
        assert seqs in ([1, 3, 4, 5], [1, 4, 5]), at
        if digits <= at < digits + 32:
            assert seqs == [1, 3, 4, 5], "a damaged hash is computed from the line before"


def test_a_line_moved_or_repeated_is_damaged() -> None:
    first, second, third, fourth = chained(4)
    chain = RunChain(1, RUN_START)
    assert [bool(chain.judge(raw)) for raw in (first, third, second, third, fourth)][:2] == [True, False]
    chain = RunChain(1, RUN_START)
    assert not chain.enter(b"a bad header", 3)
    assert [bool(chain.judge(raw)) for raw in (first, second, third, fourth)] == [False, False, True, True]
    chain = RunChain(1, RUN_START)
    assert [bool(chain.judge(raw)) for raw in (first, first, second)] == [True, False, True]


def test_a_payload_that_is_not_of_its_kind_is_damage() -> None:
    for entry in (Entry("rec", b'{"id":"x"}'), Entry("pos", b"[]"), Entry("alt", b'"\xff"'), Entry("proj", b"{}")):
        raw, _, _ = encode(entry, 1, AT_MS, RUN_START)
        with pytest.raises(LineError):
            entry_of(parse(raw[:-1]))


def test_a_projection_is_read_back_with_pair_level_and_name() -> None:
    entry = shown(1, "pair_7", "L2", "org/a")
    raw, _, _ = encode(entry, 1, AT_MS, RUN_START)
    assert raw.startswith(b'{"k":"proj","seq":1,"at":1763877600123,"from":"pair_7","ns":"org/a","run":"')
    assert entry_of(parse(raw[:-1])) == entry
