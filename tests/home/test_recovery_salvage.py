"""What is left of a damaged line tells whether it is held elsewhere, and never more than that."""

import itertools
from pathlib import Path

import pytest

from spl.core import keys
from spl.core.identity.did import Chain, did_of
from spl.core.limits import Limits
from spl.core.record import record
from spl.core.record.record import Sig
from spl.home.log import Log
from spl.home.recovery import Damage
from spl.home.segments import Entry
from tests.store_kit import AT_MS, log_files, note, open_store, shown

KEY = keys.SecretKey(b"k" * 32)
DID = Chain(did_of("ann", KEY.public), KEY.public).did


def envelope(n: int, body: dict[str, object] | None = None) -> Entry:
    """Return an entry whose id is the hash of its record."""
    value = record.check(
        {"act": "DO", "actor": "did:sync:user:a", "thread": "th", "clock": n, "body": body or {"n": n}}, Limits()
    )
    id_, text = record.identify(value, Limits())
    raw = record.seal(value, id_, text, Sig(DID, "k", bytes(64))).raw
    return Entry("rec", raw, "pair_1", "default", False, id_, "th", "did:sync:user:a", n, DID)


def opened(folder: Path, *entries: Entry) -> Log:
    store = open_store(folder)
    store.append(list(entries), AT_MS)
    store.close()
    return open_store(folder)


def damaged(folder: Path, mark: bytes, bad: bytes) -> tuple[Log, Damage]:
    """Return the store with these bytes changed, its index built after that, and the damage."""
    [segment] = log_files(folder)
    data = segment.read_bytes()
    assert data.count(mark) == 1
    for path in (folder / "index").iterdir():
        path.unlink()
    segment.write_bytes(data.replace(mark, bad))
    store = open_store(folder)
    [damage] = store.report.damaged
    return store, damage


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    store = opened(tmp_path, envelope(1), envelope(2), envelope(3))
    store.close()
    return tmp_path


@pytest.mark.parametrize("at", range(0, 480, 7))
def test_wherever_one_byte_was_hit_the_record_is_known_again(folder: Path, at: int) -> None:
    """Lost until it came back, held then; the line's own bytes alone never count."""
    [segment] = log_files(folder)
    line = segment.read_bytes().splitlines(keepends=True)[2]
    at = min(at, len(line) - 2)
    store, damage = damaged(folder, line, line[:at] + bytes([line[at] ^ 2]) + line[at + 1 :])
    # Where its running hash cannot be found any more, the line after it is lost too.
    assert (damage.seq, damage.lines) in ((2, 1), (2, 2))
    assert store.held_lines(damage) == 0
    assert [item.seq for item in store.lost] == [2]
    store.append([envelope(2), envelope(3)][: damage.lines], AT_MS)
    assert store.held_lines(damage) == damage.lines


def test_bytes_that_tell_nothing_stay_lost(folder: Path) -> None:
    [segment] = log_files(folder)
    line = segment.read_bytes().splitlines(keepends=True)[2]
    store, damage = damaged(folder, line, bytes(len(line) - 1) + b"\n")
    store.append([envelope(2)], AT_MS)
    assert store.held_lines(damage) == 0


def test_of_lines_that_run_together_each_counts(folder: Path) -> None:
    [segment] = log_files(folder)
    _, _, two, three = segment.read_bytes().splitlines(keepends=True)
    store, damage = damaged(folder, two + three, two[:-1] + b" " + three[:-2] + b"#\n")
    assert damage.lines == 2
    store.append([envelope(3)], AT_MS)
    assert store.held_lines(damage) == 1
    store.append([envelope(2)], AT_MS)
    assert store.held_lines(damage) == 2


def test_an_id_inside_a_record_is_not_the_lines_own(tmp_path: Path) -> None:
    """Whoever wrote the record chose its body; it must not pass for what is held."""
    held = envelope(1)
    body = {"a": {"env": {"id": held.id, "record": {}}, "run": "0" * 32}, "record": {}}
    opened(tmp_path, held, envelope(2, body), envelope(3)).close()
    store, damage = damaged(tmp_path, b'"seq":2,', b'"seq":9,')
    assert store.held_lines(damage) == 0


def test_as_long_as_the_index_is_older_than_the_damage_nothing_counts(folder: Path) -> None:
    [segment] = log_files(folder)
    data = segment.read_bytes()
    segment.write_bytes(data.replace(b'"n":2', b'"n":#'))
    store = open_store(folder)
    store.append([envelope(2)], AT_MS)
    line = data.splitlines(keepends=True)
    start = sum(map(len, line[:2]))
    damage = Damage(2, 1, 1, start, end=(1, start + len(line[2])))
    assert store.held_lines(damage) == 0
    for _ in store.reindex(bytes):
        pass
    assert store.held_lines(damage) == 1


@pytest.mark.parametrize(("entry", "held"), [
    (note("pos", pair="pair_1", cursor="c"), 1), (note("ref", pair="pair_1", id="a" * 64, code="c"), 1), (shown(7), 0),
])  # fmt: skip
def test_positions_and_refusals_are_not_missed_and_projections_are_looked_for(
    tmp_path: Path, entry: Entry, held: int
) -> None:
    opened(tmp_path, envelope(1), entry, envelope(3)).close()
    store, damage = damaged(tmp_path, b'"seq":2,"at":', b'"seq":2,"ax":')
    assert store.held_lines(damage) == held
    store.append([entry], AT_MS)
    assert store.held_lines(damage) == 1


def test_a_missing_segment_left_nothing(tmp_path: Path) -> None:
    limits = Limits(segment_bytes=2000)
    store = open_store(tmp_path, limits=limits)
    for n in itertools.count(1):
        store.append([envelope(n)], AT_MS)
        if len(log_files(tmp_path)) == 3:
            break
    store.close()
    log_files(tmp_path)[1].unlink()
    for path in (tmp_path / "index").iterdir():
        path.unlink()
    store = open_store(tmp_path, limits=limits)
    [damage] = store.report.damaged
    assert damage.lines > 1
    assert store.held_lines(damage) == 0


def test_a_damaged_projection_that_an_old_index_leads_to_is_not_held(tmp_path: Path) -> None:
    store = opened(tmp_path, envelope(1), shown(7), envelope(3))
    [segment] = log_files(tmp_path)
    data = segment.read_bytes()
    segment.write_bytes(data.replace(b'"body":{}', b'"bodx":{}'))
    place = store.index.place(2)
    assert place is not None
    damage = Damage(2, 1, 1, place.offset, end=(1, place.end))
    assert not store.index.has_projection("pair_1", "L1", shown(7).id)
    assert store.held_lines(damage) == 0


@pytest.mark.parametrize(("hit", "by"), [(b'"seq":2,', b'"sex":2,'), (b'"id":"%b"', b'"ix":"%b"')])
def test_at_a_settled_place_a_record_whose_id_can_be_read_is_missed_until_it_is_back(
    folder: Path, hit: bytes, by: bytes
) -> None:
    """The id is read from its member, or computed where that was hit."""
    id_ = envelope(2).id.encode()
    [segment] = log_files(folder)
    line = segment.read_bytes().splitlines(keepends=True)[2]
    hit, by = (text % id_ if b"%b" in text else text for text in (hit, by))
    store, damage = damaged(folder, line, line.replace(hit, by, 1))
    store.settle([damage])
    assert store.held_lines(damage) == 0
    store.append([envelope(2)], AT_MS)
    assert store.held_lines(damage) == damage.lines == 1


def test_at_a_settled_place_bytes_that_tell_nothing_are_not_missed(folder: Path) -> None:
    [segment] = log_files(folder)
    line = segment.read_bytes().splitlines(keepends=True)[2]
    store, damage = damaged(folder, line, b"x" * (len(line) - 1) + b"\n")
    assert store.held_lines(damage) == 0
    store.settle([damage])
    assert store.held_lines(damage) == damage.lines - 1, "the line behind it can be read, and is lost with it"
    store.append([envelope(3)], AT_MS)
    assert store.held_lines(damage) == damage.lines


def test_at_a_settled_place_each_of_lines_that_run_together_is_missed(folder: Path) -> None:
    [segment] = log_files(folder)
    _, _, two, three = segment.read_bytes().splitlines(keepends=True)
    store, damage = damaged(folder, two + three, two[:-1] + b" " + three[:-2] + b"#\n")
    store.settle([damage])
    assert store.held_lines(damage) == 0
    store.append([envelope(3)], AT_MS)
    assert store.held_lines(damage) == 1
    store.append([envelope(2)], AT_MS)
    assert store.held_lines(damage) == 2
