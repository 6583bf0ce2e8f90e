"""Decisions: what waits, and approving exactly what was shown."""

from typing import Any

from tests.cli.conftest import ALICE, Daemon, Run, error, listed

ID = "pair_a1b2c3d4"
REQUEST: dict[str, Any] = {
    "object": "aitl_request",
    "id": ID,
    "kind": "federation.pair",
    "pair_id": ID,
    "from": ALICE,
    "words": "otter plum nine coal fern wax",
    "asked_at": "2026-11-23T05:59:20.000Z",
    "expires_at": "2026-11-24T06:00:20.000Z",
    "status": "pending",
    "namespaces": ["default"],
    "maps": [{"local": "a", "peer": "b"}],
    "mode": "polling",
    "endpoint": "https://alice.example/v1/federation/pair",
    "digest": "d1",
}


def test_list_shows_the_key_words(spl: Run, daemon: Daemon) -> None:
    daemon.answers["GET", "/v1/aitl"] = listed(REQUEST)
    assert spl("aitl", "list", tty=True).out == (
        "ID             FROM                     ASKED    EXPIRES\n"
        "pair_a1b2c3d4  did:sync:instance:alice  40s ago  24h\n"
        "               key: otter plum nine coal fern wax\n"
    )
    daemon.answers["GET", "/v1/aitl?all=1"] = listed({**REQUEST, "status": "rejected"})
    assert spl("aitl", "list", "--all").out.splitlines()[1].endswith("  2026-11-24T06:00:20.000Z  rejected")
    daemon.answers["GET", "/v1/aitl"] = listed()
    empty = spl("aitl", "list", tty=True)
    assert (empty.out, empty.err) == ("", "nothing waits for a decision at alice (~/.syncro)\n")


def test_show_lists_all_that_an_approval_agrees_to(spl: Run, daemon: Daemon) -> None:
    daemon.answers["GET", "/v1/aitl/pair_a"] = REQUEST
    out = spl("aitl", "show", "pair_a").out
    for value in (ID, ALICE, REQUEST["words"], REQUEST["endpoint"], "default", "a:b", "polling", "d1"):
        assert f"  {value}\n" in out, value


def test_approve_sends_the_digest_of_what_it_shows(spl: Run, daemon: Daemon) -> None:
    daemon.answers["GET", "/v1/aitl/pair_a"] = REQUEST
    daemon.answers["POST", f"/v1/aitl/{ID}/decide"] = {**REQUEST, "status": "approved"}
    result = spl("aitl", "approve", "pair_a")
    assert result.code == 0
    assert result.out.startswith(f"{ID}  approved\nfrom              {ALICE}\n")
    assert daemon.sent("POST", f"/v1/aitl/{ID}/decide").json() == {"decision": "approve", "digest": "d1"}


AGREES: dict[str, Any] = {
    "namespaces": ["default"], "maps": [{"local": "a", "peer": "b"}, {"local": "gone", "peer": "c"}],
    "left_out": [
        {"namespace": "diary", "why": "private", "fix": "spl namespace share diary"},
        {"namespace": "x", "why": "missing", "fix": "spl namespace create --shared x"},
    ],
    "unmapped": ["gone"],
}  # fmt: skip


def test_show_tells_what_an_approval_shares_and_what_it_leaves_out_and_why(spl: Run, daemon: Daemon) -> None:
    daemon.answers["GET", "/v1/aitl/pair_a"] = {**REQUEST, "namespaces": ["default", "diary", "x"], "agrees": AGREES}
    result = spl("aitl", "show", "pair_a", tty=True)
    assert "  default, a:b (L1)\n" in result.out
    assert "  diary, which is private: spl namespace share diary\n" in result.out
    assert "  x, which does not exist: spl namespace create --shared x\n" in result.out
    assert "  gone, named by a map: spl namespace create gone; or approve --without-maps\n" in result.out, result.out
    assert "instances that alice shares these namespaces with receive them as well" in result.err


def test_an_approval_may_name_namespaces_and_drop_the_maps(spl: Run, daemon: Daemon) -> None:
    daemon.answers["GET", "/v1/aitl/pair_a"] = REQUEST
    agreed = {"namespaces": ["diary", "x"], "maps": [], "left_out": [{"namespace": "default"}]}
    daemon.answers["POST", f"/v1/aitl/{ID}/decide"] = {**REQUEST, "status": "approved", "agrees": agreed}
    result = spl("aitl", "approve", "pair_a", "--namespace", "diary", "--namespace", "x", "--without-maps")
    more = {"namespaces": ["diary", "x"], "without_maps": True}
    assert daemon.sent("POST", f"/v1/aitl/{ID}/decide").json() == {
        "decision": "approve",
        "digest": "d1",
        **more,
    }
    assert "  diary, x\n" in result.out


def test_reject_with_a_reason(spl: Run, daemon: Daemon) -> None:
    daemon.answers["GET", f"/v1/aitl/{ID}"] = REQUEST
    daemon.answers["POST", f"/v1/aitl/{ID}/decide"] = {**REQUEST, "status": "rejected"}
    assert spl("aitl", "reject", ID, "--reason", "who?").out == f"{ID}  rejected\n"
    assert daemon.sent("POST", f"/v1/aitl/{ID}/decide").json() == {
        "decision": "reject",
        "digest": "d1",
        "reason": "who?",
    }


def test_an_unknown_request_exits_6(spl: Run, daemon: Daemon) -> None:
    daemon.answers["GET", "/v1/aitl/nope"] = (404, error("not-found", "no"))
    assert spl("aitl", "approve", "nope").code == 6


def test_show_says_whether_the_history_is_asked_for(spl: Run, daemon: Daemon) -> None:
    """An approval from the beginning also hands over what the namespaces hold already."""
    for start, words in (
        ("beginning", "the records that these namespaces hold already"),
        ("present", "new records only"),
    ):
        daemon.answers["GET", "/v1/aitl/pair_a"] = {**REQUEST, "agrees": {**AGREES, "start": start}}
        assert f"{words}\n" in spl("aitl", "show", "pair_a").out
