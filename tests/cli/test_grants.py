"""Grants on the command line: the page's own command, what is said beside it, and the list of both sides."""

from typing import Any

import pytest

from tests.cli.conftest import ALICE, BOB, Daemon, Run, error, listed

BOB_SHORT = "did:sync:instance:bob"
PATH = f"/v1/federation/pairs/{BOB_SHORT}"
GRANT: dict[str, Any] = {
    "object": "grant", "pair_id": "pair_a1b2c3d4", "peer_did": BOB, "direction": "out", "namespace": "music",
    "peer_namespace": "projects/music", "maps": ["music", "projects/music"], "granted": "L1", "level": "L1",
    "version": 1, "missing": "", "fix": "", "at_peer": False, "code": "", "agreed": False, "already": False,
    "unheard": None,
}  # fmt: skip
PAGE = f"federation grant {BOB_SHORT} --namespace music --maps music,projects/music --hash-level L1"


def test_the_command_of_the_page(spl: Run, daemon: Daemon) -> None:
    daemon.answers["POST", f"{PATH}/grants"] = GRANT
    result = spl(*PAGE.split())
    assert (result.code, result.out) == (0, "pair_a1b2c3d4  granted: music -> bob:projects/music (L1)\n")
    assert daemon.sent("POST", f"{PATH}/grants").json() == {
        "namespace": "music",
        "maps": "projects/music",
        "level": "L1",
    }
    assert "a short body can be guessed from its id" in result.err
    assert "does not recall what was delivered" in result.err
    assert "hub" not in result.err
    daemon.answers["POST", f"{PATH}/grants"] = {**GRANT, "already": True}
    assert spl(*PAGE.split()).out.startswith("pair_a1b2c3d4  already granted: ")
    assert spl(*PAGE.split(), "-o", "json").data["version"] == 1


def test_what_is_left_out_is_left_to_the_daemon(spl: Run, daemon: Daemon) -> None:
    daemon.answers["POST", f"{PATH}/grants"] = GRANT
    spl("federation", "grant", BOB_SHORT, "--namespace", "music")
    assert daemon.sent("POST", f"{PATH}/grants").json() == {"namespace": "music"}


@pytest.mark.parametrize("maps", ["music", "music,", ",music", "music,a,b", "other,projects/music"])
def test_maps_begin_with_the_namespace_and_name_one_of_the_peer(spl: Run, daemon: Daemon, maps: str) -> None:
    result = spl("federation", "grant", BOB_SHORT, "--namespace", "music", "--maps", maps)
    assert (result.code, "[usage]" in result.err) == (2, True)
    assert not daemon.calls


def test_one_sided_exact_sharing_tells_the_peers_command(spl: Run, daemon: Daemon) -> None:
    fix = "spl federation grant pair_a1b2c3d4 --namespace projects/music --maps projects/music,music --hash-level L0"
    one_sided = {**GRANT, "granted": "L0", "missing": "L0 behaves as L1 until bob grants it too", "fix": fix,
                 "at_peer": True}  # fmt: skip
    daemon.answers["POST", f"{PATH}/grants"] = one_sided
    result = spl(*PAGE.replace("L1", "L0").split())
    assert "if bob is a hub, music goes to all instances with which it shares projects/music" in result.err
    assert "! L0 behaves as L1 until bob grants it too" in result.err
    assert f"fix       on bob: {fix}" in result.err
    late = {**GRANT, "unheard": "connect", "missing": "bob does not hold it yet", "fix": "spl federation refresh p"}
    daemon.answers["POST", f"{PATH}/grants"] = late
    assert "! bob has not received the grant yet (connect); it will be sent on next contact" in spl(*PAGE.split()).err
    daemon.answers["POST", f"{PATH}/grants"] = {**GRANT, "agreed": True}
    assert "music was shared in full; --hash-level L0 restores that" in spl(*PAGE.split()).err


def test_revoke_grant(spl: Run, daemon: Daemon) -> None:
    daemon.answers["POST", f"{PATH}/revoke-grant"] = {**GRANT, "granted": "none", "unheard": "timeout"}
    result = spl("federation", "revoke-grant", BOB_SHORT, "--namespace", "music")
    assert result.out == "pair_a1b2c3d4  withdrawn: music\n"
    assert "stays with the peer" in result.err
    assert "bob has not been told yet (timeout)" in result.err
    daemon.answers["POST", f"{PATH}/revoke-grant"] = {**GRANT, "already": True}
    assert spl("federation", "revoke-grant", BOB_SHORT, "--namespace", "music").out.endswith(
        "already withdrawn: music\n"
    )
    daemon.answers["POST", f"{PATH}/revoke-grant"] = (404, error("not-found", "nothing of it is granted"))
    assert spl("federation", "revoke-grant", BOB_SHORT, "--namespace", "music").code == 6


def test_the_list_has_both_sides_and_what_is_missing(spl: Run, daemon: Daemon) -> None:
    rows = [
        GRANT,
        {**GRANT, "namespace": "a", "maps": ["a", "a"], "granted": "none", "level": "none", "version": 3},
        {**GRANT, "direction": "in", "maps": ["x", "music"], "granted": "L2", "level": "none", "version": 2,
         "missing": "namespace music does not exist or is not active here", "fix": "spl namespace create music"},
        {**GRANT, "namespace": "default", "maps": ["default"] * 2, "granted": "L0", "level": "L0", "version": 0},
    ]  # fmt: skip
    daemon.answers["GET", "/v1/consent/grants"] = listed(*rows)
    assert spl("consent", "list", tty=True, env={"COLUMNS": "220"}).out == (
        "PAIR ID        PEER DID               NAMESPACES                   LEVEL      VERSION  MISSING\n"
        "pair_a1b2c3d4  did:sync:instance:bob  music -> bob:projects/music  L1         1        -\n"
        "pair_a1b2c3d4  did:sync:instance:bob  a -> bob                     withdrawn  3        -\n"
        "pair_a1b2c3d4  did:sync:instance:bob  music <- bob:x               L2         2        "
        "namespace music does not exist or is not active here: spl namespace create music\n"
        "pair_a1b2c3d4  did:sync:instance:bob  default -> bob               L0         -        -\n"
    )
    daemon.answers["GET", "/v1/consent/grants?pair=pair_1"] = listed()
    result = spl("consent", "list", "pair_1", tty=True)
    assert (result.code, result.out) == (0, "")
    assert spl("consent", "list", "-o", "json").data == rows
    assert ALICE


def test_help_explains_consent_across_namespaces_with_an_example_that_runs(spl: Run, daemon: Daemon) -> None:
    page = spl("federation", "grant", "--help").out
    assert "takes\nthe same grant of both sides, and behaves as L1 until then" in page
    example = page.partition("example:\n")[2].strip().removeprefix("spl ")
    assert example == PAGE
    daemon.answers["POST", f"{PATH}/grants"] = GRANT
    assert spl(*example.split()).code == 0
