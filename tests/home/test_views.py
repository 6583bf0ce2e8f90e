"""Folds: equal from the log and live, and deaf to everybody else's word."""

from collections.abc import Iterator
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spl.core import consent, fold, rules
from spl.core.identity.did import Chain, did_of, rotate
from spl.core.identity.pins import KIND_CHAIN
from spl.core.keys import SecretKey
from spl.core.limits import Limits
from spl.core.pair.state import Revoked
from spl.core.pair.steps import ManifestChange, Revoke, Told, decide
from spl.core.record import namespace
from spl.home import views
from spl.home.config import Config
from spl.home.disk import Disk
from spl.home.home import Home, open_home
from spl.home.log import Entry
from spl.home.views import KIND_BLOCK, THREAD_NAMESPACES, THREAD_PAIRS, Views, load
from spl.home.writes import Own, Refuse, SavedPosition
from tests.core.pair_kit import CHAIN, KEY, LATER, NOW_MS, PATHS, PEER, bodies
from tests.store_kit import AT_MS, open_store, record

RULE = {"name": "r", "resource": "*", "action": "deny", "priority": 1, "expression": "true"}
APPROVAL = {"name": "a", "action": "auto_apply", "priority": 1, "expression": "true", "namespaces": ["default"]}
SPENT = {"name": "spent", "thread": "th_*", "fold": "sum", "field": "order.total", "priority": 0}
GRANT = consent.Grant("music", "projects/music", 1, 1)
FOREIGN = "did:sync:instance:mallory-" + "0" * 24


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    found = open_home(tmp_path / "h", Config(), disk=Disk(), progress=lambda done, total: None)
    found.adopt(found.vault.generate("alice"))
    yield found
    found.close()


def state(views: Views) -> tuple[object, ...]:
    return (
        views.pairs,
        views.tokens,
        views.requests,
        views.consents,
        views.statements,
        views.namespaces,
        views.refused,
        views.beyond,
        views.pins,
        views.rules,
        views.aitl_rules,
        views.fold_rules,
        {name: (place.cursor, place.count) for name, place in views.positions.items()},
    )


def test_live_and_loaded_folds_are_equal(home: Home) -> None:
    key, next_key = SecretKey(b"1" * 32), SecretKey(b"2" * 32)
    chain = Chain(did_of("carol", key.public), key.public)
    grown = rotate(chain, key, next_key.public, "retired", 1)
    for items in (
        [Own(THREAD_NAMESPACES, namespace.KIND_CREATE, {"name": "music"})],
        [Own(rules.THREAD, rules.KIND_PERMISSION, RULE), Own(rules.THREAD, rules.KIND_AITL, APPROVAL)],
        [Own(rules.THREAD, fold.KIND_FOLD, SPENT)],
        [Own(THREAD_PAIRS, KIND_CHAIN, {"chain": chain.to_json()}), SavedPosition("pair_1", "a", 1)],
        [Own(THREAD_PAIRS, KIND_CHAIN, {"chain": grown.to_json()})],
        [Own(THREAD_PAIRS, KIND_CHAIN, {"chain": chain.to_json()})],
        [Own(consent.THREAD, consent.KIND_GRANT, consent.grant_body("pair_1", GRANT, "", held=False))],
        [Own(consent.THREAD, consent.KIND_PEER_GRANT, {"pair_id": "pair_1", "grant": GRANT.to_json(), "statement": 1})],
        [Refuse("pair_1", "f" * 64, "record-id"), SavedPosition("pair_1", "b", 3), SavedPosition("pair_2", "c", 0)],
        [Refuse("pair_3", f"{number:064x}", f"code-{number % 3}") for number in range(Limits().refused_per_pair + 5)],
    ):
        future = home.writer.submit(items)
        home.writer.commit_waiting()
        future.result(0)
    assert home.views.pins.chain(chain.did) == grown, "a shorter chain does not replace a longer one"
    loaded = load(home.store, home.views.did, Limits())
    assert state(loaded) == state(home.views)
    for refused_max in (10, 10_000):
        other = load(home.store, home.views.did, Limits(refused_per_pair=refused_max))
        assert state(other) == state(home.views), "what a full ledger left out is known under another limit, too"
    assert list(loaded.rules) == ["r"]
    assert loaded.consents == {"pair_1": consent.PairGrants({"music": GRANT}, {"music": GRANT}, frozenset({"music"}))}
    assert list(loaded.aitl_rules) == ["a"]
    assert list(loaded.fold_rules) == ["spent"]
    loaded = load(home.store, FOREIGN, Limits())
    assert state(loaded)[:2] == ({}, {}), "another instance takes nothing from the one before"
    assert (loaded.rules, loaded.aitl_rules, loaded.fold_rules) == ({}, {}, {})


def test_a_block_stands_until_it_is_lifted_and_a_pin_of_the_operator_replaces_a_chain(home: Home) -> None:
    key, keys = SecretKey(b"1" * 32), (SecretKey(b"2" * 32), SecretKey(b"3" * 32))
    first = Chain(did_of("carol", key.public), key.public)
    one, other = (rotate(first, key, each.public, "retired", 1) for each in keys)
    bodies = (
        (KIND_CHAIN, {"chain": one.to_json()}), (KIND_CHAIN, {"chain": other.to_json()}),
        (KIND_BLOCK, {"did": first.did, "blocked": True}), (KIND_BLOCK, {"did": FOREIGN, "blocked": True}),
        (KIND_BLOCK, {"did": FOREIGN, "blocked": False}),
    )  # fmt: skip
    for kind, body in bodies:
        future = home.writer.submit([Own(THREAD_PAIRS, kind, body)])
        home.writer.commit_waiting()
        future.result(0)
    assert home.views.blocked == {first.did}
    assert home.views.pins.chain(first.did) == one
    future = home.writer.submit([Own(THREAD_PAIRS, KIND_CHAIN, {"chain": other.to_json(), "pinned": True})])
    home.writer.commit_waiting()
    future.result(0)
    assert home.views.pins.chain(first.did) == other
    loaded = load(home.store, home.views.did, Limits())
    assert (loaded.blocked, loaded.pins) == (home.views.blocked, home.views.pins)


def test_what_an_ended_pair_still_says_brings_no_settled_fork_back(home: Home) -> None:
    """Its revocation is told to the peer only after the operator chose the peer's other chain."""
    chosen = rotate(CHAIN, KEY, SecretKey(b"3" * 32).public, "retired", NOW_MS)
    *live, over = [*PATHS["Active"], ManifestChange(LATER), Revoke("over"), Told()]
    pair, found = None, list[Own]()
    for step in live:
        pair, effects = decide(pair, step, NOW_MS)
        found += [Own(THREAD_PAIRS, str(body["kind"]), body) for body in bodies(effects)]
    _, effects = decide(pair, over, NOW_MS)
    found.append(Own(THREAD_PAIRS, KIND_CHAIN, {"chain": chosen.to_json(), "pinned": True}))
    found += [Own(THREAD_PAIRS, str(body["kind"]), body) for body in bodies(effects)]
    future = home.writer.submit(found)
    home.writer.commit_waiting()
    future.result(0)
    for each in (home.views, load(home.store, home.views.did, Limits())):
        assert [pair.state for pair in each.pairs.values()] == [Revoked("over", by_us=True)]
        assert (each.pins.chain(PEER), each.pins.is_forked(PEER)) == (chosen, False)


def test_nobody_elses_record_counts(home: Home) -> None:
    body = {"kind": namespace.KIND_CREATE, "name": "music"}
    entry = Entry(kind="rec", payload=b"{}", thread=THREAD_NAMESPACES, voucher=FOREIGN)
    assert home.views.folded(entry, {"body": body}, 1, 1) is home.views


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
THREADS = (consent.THREAD, "th_federation_pairs", "th_api_tokens", "th_aitl", "th_namespace_registry")
KINDS = st.sampled_from(
    [
        "syncropel.federation.pair_init.v1",
        "syncropel.federation.pair.genesis.v1",
        "pair_pause.v1",
        KIND_CHAIN,
        KIND_BLOCK,
        consent.KIND_GRANT,
        consent.KIND_PEER_GRANT,
        "syncropel.access.token_mint.v1",
        "syncropel.access.token_revoke.v1",
        "syncropel.aitl.request.v1",
        "syncropel.aitl.decision.v1",
        namespace.KIND_CREATE,
        namespace.KIND_STATE,
    ]
)


@given(
    thread=st.sampled_from(THREADS),
    kind=KINDS,
    body=st.dictionaries(
        st.sampled_from(["pair_id", "token_id", "request_id", "name", "state", "chain", "scopes", "decision", "by"]),
        JSON,
    ),
)
def test_no_body_makes_a_fold_raise(thread: str, kind: str, body: dict[str, object]) -> None:
    """History is a fact: what cannot be used is skipped."""
    views = Views(Limits(), "did:sync:instance:a-" + "0" * 24)
    entry = Entry(kind="rec", payload=b"{}", thread=thread, voucher=views.did)
    views.folded(entry, {"body": {"kind": kind, **body}}, 1, 1)


def test_what_the_disk_damaged_since_it_was_indexed_is_left_out(tmp_path: Path) -> None:
    """The daemon starts all the same, and a record that was changed decides nothing."""
    home = open_home(tmp_path, Config(), disk=Disk(), progress=lambda done, total: None)
    home.adopt(home.vault.generate("alice"))
    for name in ("music", "plans", "songs", "texts"):
        home.writer.submit(
            [Own(THREAD_NAMESPACES, namespace.KIND_CREATE, {"name": name}), SavedPosition("pair_1", f"c-{name}", 1)]
        )
        home.writer.commit_waiting()
    home.close()
    home.lock.release()
    [segment] = (tmp_path / "store").glob("*.jsonl")
    data = segment.read_bytes()
    for mark, bad in ((b'"plans"}', b'"plan#}}'), (b'"songs"', b'"wrong"'), (b'"c-texts",', b'"c-texts"#')):
        assert data.count(mark) == 1, mark
        data = data.replace(mark, bad)
    segment.write_bytes(data)
    home = open_home(tmp_path, Config(), disk=Disk(), progress=lambda done, total: None)
    assert {"music", "texts"} <= set(home.views.namespaces)
    assert not {"plans", "songs", "wrong"} & set(home.views.namespaces)
    assert {pair: found.cursor for pair, found in home.views.positions.items()} == {"pair_1": "c-songs"}
    home.close()
    home.lock.release()


def test_a_reader_sees_the_folds_of_one_commit_whole(home: Home) -> None:
    """What it took does not change under it, and a listener of the commit finds all of it folded."""
    before, seen = home.views, list[tuple[bool, bool]]()
    home.writer.listen(lambda commit: seen.append(("music" in home.views.namespaces, "pair_1" in home.views.positions)))
    home.writer.submit(
        [Own(THREAD_NAMESPACES, namespace.KIND_CREATE, {"name": "music"}), SavedPosition("pair_1", "a", 1)]
    )
    home.writer.commit_waiting()
    assert seen == [(True, True)]
    assert ("music" in before.namespaces, dict(before.positions)) == (False, {})
    with pytest.raises(FrozenInstanceError):
        home.views.pairs = {}  # type: ignore[misc]


def test_a_thread_is_folded_by_our_clocks_whatever_the_arrival(tmp_path: Path) -> None:
    """A restore brings early records late; pages do not disturb the order."""
    store = open_store(tmp_path)
    clocks = [*range(100, 160), 3, 1, 2, *range(160, 170), 0]
    for clock in clocks:
        store.append([record(clock, ns="", thread=THREAD_PAIRS, clock=clock)], AT_MS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(views, "PAGE_ROWS", 7)
        pages = list(views._pages(store, THREAD_PAIRS))
    assert [row.clock for page in pages for row in page] == sorted(clocks)
    assert max(len(page) for page in pages) == 7
