"""`federation list` and the actions on a pair."""

import json
from typing import Any

import pytest

from spl.core.pair.modes import MODES
from tests.cli.conftest import ALICE, BOB, NOW, Daemon, Run, error, listed

PAIRS = "/v1/federation/pairs"


def a_pair(**more: Any) -> dict[str, Any]:
    return {
        "object": "pair",
        "pair_id": "pair_a1b2c3d4",
        "peer_did": BOB,
        "url": "https://bob.example",
        "state": "active",
        "state_detail": "",
        "mode": "continuous",
        "poll_interval_ms": 300_000,
        "initiator": True,
        "namespaces": ["default"],
        "last_sync_at": "2026-11-23T05:59:58.000Z",
        **more,
    }


def three() -> dict[str, object]:
    fingerprint = "-0123456789abcdef01234567"
    return listed(
        a_pair(),
        a_pair(
            pair_id="pair_0f9e8d7c",
            peer_did=f"did:sync:instance:hosted{fingerprint}",
            state="degraded",
            mode="polling",
            last_sync_at="2026-11-23T04:00:00.000Z",
        ),
        a_pair(
            pair_id="pair_77aa12b0",
            peer_did=f"did:sync:instance:nas{fingerprint}",
            state="paused",
            mode="on-demand",
            state_detail="paused by peer",
            last_sync_at=None,
        ),
    )


def test_list_has_the_pages_five_columns(spl: Run, daemon: Daemon) -> None:
    daemon.answers["GET", PAIRS] = three()
    result = spl("federation", "list", tty=True)
    assert result.out == (
        "PAIR ID        PEER DID                  STATE             MODE        LAST SYNC\n"
        "pair_a1b2c3d4  did:sync:instance:bob     active            continuous  2s ago\n"
        "pair_0f9e8d7c  did:sync:instance:hosted  degraded          polling     2h ago\n"
        "pair_77aa12b0  did:sync:instance:nas     paused (by peer)  on-demand   never\n"
    )
    assert result.err == "! 1 pair needs attention: spl doctor pair_0f9e8d7c\n"


def test_list_into_a_pipe_is_exact(spl: Run, daemon: Daemon) -> None:
    daemon.answers["GET", PAIRS] = listed(a_pair())
    result = spl("federation", "list")
    assert result.out.splitlines() == [
        f"PAIR ID        PEER DID{' ' * 40}STATE   MODE        LAST SYNC",
        f"pair_a1b2c3d4  {BOB}  active  continuous  2026-11-23T05:59:58.000Z",
    ]
    assert result.err == ""
    wide = spl("federation", "list", "-o", "wide", tty=True).out.splitlines()
    assert wide[0].split()[-4:] == ["OUT", "NAMESPACES", "ROLE", "URL"]
    assert wide[1].endswith("2026-11-23T05:59:58.000Z  -    default     initiator  https://bob.example")


def test_list_says_who_does_not_answer_and_what_waits_for_whom(spl: Run, daemon: Daemon) -> None:
    """State and reach are two facts: a pair stays active while its peer is gone."""
    gone = a_pair(offline_since="2026-11-23T05:58:00.000Z", outbound={"clock": 4, "lag_records": 1432})
    daemon.answers["GET", PAIRS] = listed(gone, a_pair(pair_id="pair_0f9e8d7c", outbound={"lag_records": 0}))
    result = spl("federation", "list", tty=True)
    assert result.out == (
        "PAIR ID        PEER DID               STATE               MODE        LAST SYNC  OUT\n"
        "pair_a1b2c3d4  did:sync:instance:bob  active, offline 2m  continuous  2s ago     1432\n"
        "pair_0f9e8d7c  did:sync:instance:bob  active              continuous  2s ago     0\n"
    )
    assert result.err == "! 1 pair needs attention: spl doctor pair_a1b2c3d4\n"


def test_list_for_programs(spl: Run, daemon: Daemon) -> None:
    daemon.answers["GET", PAIRS] = listed(a_pair())
    whole = json.loads(spl("federation", "list", "-o", "json").out)
    assert whole == {"schema": "spl.pairs/1", "generated_at": NOW, "instance": ALICE, "data": [a_pair()]}
    assert [json.loads(line) for line in spl("federation", "list", "-o", "jsonl").out.splitlines()] == [a_pair()]


def test_revoked_pairs_are_shown_when_asked_for(spl: Run, daemon: Daemon) -> None:
    """They are final and only add up; programs and -o wide get them always."""
    daemon.answers["GET", PAIRS] = listed(a_pair(), a_pair(pair_id="pair_0f9e8d7c", state="revoked"))
    result = spl("federation", "list")
    assert "pair_a1b2c3d4" in result.out
    assert "revoked" not in result.out
    assert result.err == "1 revoked pair not shown: spl federation list --all\n"
    for words in (("--all",), ("-o", "wide"), ("-o", "json")):
        result = spl("federation", "list", *words)
        assert "pair_0f9e8d7c" in result.out
        assert not result.err
    daemon.answers["GET", PAIRS] = listed(a_pair(state="revoked"))
    assert spl("federation", "list").err == (
        "no live pairs: spl federation pair URL\n1 revoked pair not shown: spl federation list --all\n"
    )


def test_an_empty_list_is_empty_and_says_how_to_begin(spl: Run, daemon: Daemon) -> None:
    daemon.answers["GET", PAIRS] = listed()
    result = spl("federation", "list", tty=True)
    assert (result.code, result.out) == (0, "")
    assert result.err == "no pairs yet: spl federation pair URL\n"


@pytest.mark.parametrize(
    ("line", "path", "body", "answer", "printed"),
    [
        ("pause bob", "pause", {}, a_pair(state="paused", state_detail="paused"), "pair_a1b2c3d4  paused\n"),
        ("pause bob", "pause", {}, a_pair(state="paused", already=True), "pair_a1b2c3d4  already_paused\n"),
        ("resume bob", "resume", {}, a_pair(), "pair_a1b2c3d4  resumed, state active\n"),
        (
            "resume bob",
            "resume",
            {},
            a_pair(state="paused", state_detail="paused by peer"),
            "pair_a1b2c3d4  resumed, state paused (by peer)\n",
        ),
        ("revoke bob", "revoke", {}, a_pair(state="revoked"), "pair_a1b2c3d4  revoked\n"),
        (
            "revoke bob --reason sold",
            "revoke",
            {"reason": "sold"},
            a_pair(state="revoked", already=True),
            "pair_a1b2c3d4  already_revoked\n",
        ),
        ("refresh bob", "refresh", {}, a_pair(), "pair_a1b2c3d4  refreshed, state active\n"),
        (
            "set-mode bob on-demand",
            "mode",
            {"mode": "on-demand"},
            a_pair(),
            "pair_a1b2c3d4  mode on-demand, state active\n",
        ),
        (
            "set-poll-interval bob 30s",
            "poll-interval",
            {"interval_ms": 30_000},
            a_pair(mode="polling"),
            "pair_a1b2c3d4  poll interval 30s, state active\n",
        ),
    ],
)
def test_actions(spl: Run, daemon: Daemon, line: str, path: str, body: object, answer: object, printed: str) -> None:
    daemon.answers["POST", f"{PAIRS}/bob/{path}"] = answer
    result = spl("federation", *line.split())
    assert (result.code, result.out) == (0, printed)
    assert daemon.sent("POST", f"{PAIRS}/bob/{path}").json() == body
    assert spl("federation", *line.split(), "-o", "json").data == answer


def test_a_mode_for_both_directions_says_what_the_peer_does(spl: Run, daemon: Daemon) -> None:
    path = f"{PAIRS}/bob/mode"
    daemon.answers["POST", path] = a_pair(asked={"mode": "continuous", "error": None})
    done = spl("federation", "set-mode", "bob", "continuous", "--both")
    assert (done.code, daemon.sent("POST", path).json()) == (0, {"mode": "continuous", "both": True})
    assert done.out.endswith("both directions: bob fetches from here in mode continuous too\n")
    kept = error("mode-kept", "bob stays in mode polling when it fetches from here", hint="on bob: spl x")
    daemon.answers["POST", path] = a_pair(asked={"mode": "continuous", "error": kept})
    for form in ("table", "json"):
        result = spl("federation", "set-mode", "bob", "continuous", "--both", "-o", form)
        assert result.code == 4
    result = spl("federation", "set-mode", "bob", "continuous", "--both")
    assert result.out == "pair_a1b2c3d4  mode continuous, state active\n"
    assert "error: bob stays in mode polling when it fetches from here [mode-kept]" in result.err
    assert "fix       on bob: spl x" in result.err


def test_the_end_of_a_carrier_says_what_stays_at_its_server(spl: Run, daemon: Daemon) -> None:
    path, command = f"{PAIRS}/bob/carrier", "nats --server nats://n consumer rm SPL_bob_z pair_1-ab --force"
    daemon.answers["POST", path] = a_pair(consumers={"deleted": 2, "error": None, "commands": []})
    assert "deleted 2 consumers at the server\n" in spl("federation", "set-carrier", "bob", "none").out
    kept = {"deleted": 0, "error": error("sink-unreachable", "n port 4222: no route"), "commands": [command]}
    daemon.answers["POST", path] = a_pair(consumers=kept)
    result = spl("federation", "set-carrier", "bob", "none")
    assert result.code == 0
    assert f"at the server: n port 4222: no route\n  fix       {command}\n" in result.err
    kept = {**kept, "error": error("sink-auth", "the server says: Permissions Violation")}
    daemon.answers["POST", path] = a_pair(consumers=kept)
    assert "Permissions Violation; its operator deletes them\n" in spl("federation", "set-carrier", "bob", "none").err


def test_an_unknown_mode_is_refused_with_those_that_there_are(spl: Run, daemon: Daemon) -> None:
    """The engine is none of them: `set-carrier` sets it."""
    result = spl("federation", "set-mode", "bob", "engine")
    assert result.code == 2
    assert all(mode in result.err for mode in MODES)


def test_a_new_address_is_given_to_refresh(spl: Run, daemon: Daemon) -> None:
    daemon.answers["POST", f"{PAIRS}/bob/refresh"] = a_pair(url="http://127.0.0.1:9555")
    result = spl("federation", "refresh", "bob", "--url", "http://127.0.0.1:9555/")
    assert result.out == "pair_a1b2c3d4  refreshed, state active\nbob is at http://127.0.0.1:9555\n"
    assert daemon.sent("POST", f"{PAIRS}/bob/refresh").json() == {"url": "http://127.0.0.1:9555/"}


def test_an_interval_outside_of_polling_says_when_it_applies(spl: Run, daemon: Daemon) -> None:
    daemon.answers["POST", f"{PAIRS}/bob/poll-interval"] = a_pair(mode="on-demand")
    assert (
        spl("federation", "set-poll-interval", "bob", "5m").err
        == "it applies in mode polling; the mode of this pair is on-demand\n"
    )


def test_revoking_says_what_ended(spl: Run, daemon: Daemon) -> None:
    daemon.answers["POST", f"{PAIRS}/bob/revoke"] = a_pair(state="revoked")
    assert "bob is told if it can be reached" in spl("federation", "revoke", "bob").err


@pytest.mark.parametrize(
    ("code", "status", "exit_code"), [("pair-unknown", 404, 6), ("ambiguous", 409, 6), ("pair-revoked", 410, 7)]
)
def test_refusals_give_their_exit_code(spl: Run, daemon: Daemon, code: str, status: int, exit_code: int) -> None:
    daemon.answers["POST", f"{PAIRS}/did:sync:instance:bob/resume"] = (status, error(code, "no"))
    result = spl("federation", "resume", "did:sync:instance:bob")
    assert (result.code, result.out) == (exit_code, "")
    assert result.err.startswith(f"error: no [{code}]\n")


def test_flags_of_the_lifecycle_reach_the_daemon(spl: Run, daemon: Daemon) -> None:
    writer = {"pair_id": "pair_2", "peer_did": ALICE}
    for line, action, body, answer, out, err in (
        ("resume pair_1 --resync", "resume", {"resync": True}, {"records": 7}, "7 new records", ""),
        ("refresh pair_1 --expect-key z6Mk", "refresh", {"expect_key": "z6Mk"}, {}, "refreshed", ""),
        ("revoke pair_1 --block", "revoke", {"block": True}, {"blocked": True, "state": "revoked"}, "revoked",
         "what bob signed is refused"),
        ("revoke pair_1", "revoke", {}, {"hubs": [writer], "state": "revoked"}, "revoked",
         "through alice (pair_2); --block refuses them"),
    ):  # fmt: skip
        daemon.answers["POST", f"{PAIRS}/pair_1/{action}"] = a_pair(**answer)
        result = spl("federation", *line.split())
        assert out in result.out
        assert err in result.err
        assert daemon.sent("POST", f"{PAIRS}/pair_1/{action}").json() == body


def test_a_token_for_a_pair_comes_from_stdin(spl: Run, daemon: Daemon) -> None:
    daemon.answers["POST", f"{PAIRS}/pair_1/set-token"] = a_pair()
    result = spl("federation", "set-token", "pair_1", stdin=b" spl_home_sa_1_secret\n")
    assert "token installed" in result.out
    assert "secret" not in result.out + result.err
    assert daemon.sent("POST", f"{PAIRS}/pair_1/set-token").json() == {"token": "spl_home_sa_1_secret"}
    assert spl("federation", "set-token", "pair_1", stdin=b"\n").code == 2


@pytest.mark.parametrize(("argv", "action", "body", "printed"), [
    (["set-relay", "bob", "off"], "relay", {"relay": False}, "relay off"),
    (["set-relay", "bob", "on"], "relay", {"relay": True}, "relay on"),
    (["thread-allow", "bob", "th_a", "th_b"], "thread-allow", {"threads": ["th_a", "th_b"], "remove": False},
     "allows th_a, th_b"),
    (["thread-allow", "bob", "th_a", "--remove"], "thread-allow", {"threads": ["th_a"], "remove": True},
     "no longer allows th_a"),
    (["thread-allow", "bob", "--clear"], "thread-allow", {"clear": True}, "allows no thread by name"),
    (["thread-rule", "bob", "true"], "thread-rule", {"expression": "true"}, "thread rule set"),
    (["thread-rule", "bob", "--clear"], "thread-rule", {"expression": ""}, "thread rule cleared"),
])  # fmt: skip
def test_filters_say_what_is_sent_from_now_on(
    spl: Run, daemon: Daemon, argv: list[str], action: str, body: object, printed: str
) -> None:
    held = {"relay": False, "thread_allow": ["th_a", "th_b"], "thread_rule": "true"}
    daemon.answers["POST", f"{PAIRS}/bob/{action}"] = a_pair(filter=held)
    result = spl("federation", *argv)
    assert (result.code, result.out) == (0, f"pair_a1b2c3d4  {printed}, state active\n")
    assert daemon.sent("POST", f"{PAIRS}/bob/{action}").json() == body
    assert result.err == (
        "sent from now on: what this instance signed, of threads th_a, th_b or where true; "
        "what was sent before stays with the peer\n"
    )


@pytest.mark.parametrize("argv", [
    ["thread-allow", "bob"], ["thread-allow", "bob", "th", "--clear"], ["thread-rule", "bob"],
    ["thread-rule", "bob", "true", "--clear"], ["set-relay", "bob", "maybe"],
])  # fmt: skip
def test_filters_take_one_wish_at_a_time(spl: Run, daemon: Daemon, argv: list[str]) -> None:
    assert spl("federation", *argv).code == 2
    assert not daemon.calls


@pytest.mark.parametrize(("held", "text"), [
    ({"relay": True, "thread_allow": [], "thread_rule": ""}, "all that is shared"),
    ({"relay": False, "thread_allow": [], "thread_rule": ""}, "what this instance signed"),
    ({"relay": True, "thread_allow": ["a"], "thread_rule": ""}, "all that is shared, of threads a"),
    ({"relay": True, "thread_allow": [], "thread_rule": "x"}, "all that is shared, where x"),
])  # fmt: skip
def test_show_says_what_is_sent_and_what_is_taken(spl: Run, daemon: Daemon, held: object, text: str) -> None:
    detail = a_pair(filter=held, actors=["did:a", "did:b"], last_sync_cursor=None)
    daemon.answers["GET", f"{PAIRS}/bob"] = detail
    out = spl("federation", "show", "bob").out
    assert f"  {text}\n" in out
    assert "  records of did:a, did:b only\n" in out


def test_the_next_step_names_the_pair_that_was_given(spl: Run, daemon: Daemon) -> None:
    """A fix can be pasted: the daemon's PAIR_ID is replaced by what the command was called with."""
    paused = {**error("pair-paused", "bob paused it"), "hint": "spl federation resume PAIR_ID on that side"}
    daemon.answers["POST", f"{PAIRS}/bob/mode"] = (409, paused)
    result = spl("federation", "set-mode", "bob", "polling")
    assert result.code == 7
    assert "  fix       spl federation resume bob on that side\n" in result.err
