"""`federation pair`: byte-exact when all goes well, plain words and exit codes when it does not."""

import re
from collections.abc import Iterator
from typing import Any

import pytest

from spl.cli.client import Ctl
from tests.cli.conftest import ALICE, BOB, Daemon, Run, chunked, error

STREAM = ("POST", "/v1/federation/pairs")
URL = "https://bob.example/"
SCOPES = ["federation:subscribe", "federation:sync"]
OUR_WORDS, PEER_WORDS = "otter plum nine coal fern wax", "sable tin four oak rush dune"


def head(status: int) -> list[dict[str, Any]]:
    return [
        {"step": "manifest", "did": BOB, "url": "https://bob.example"},
        {"step": "verified"},
        {"step": "posted", "status": status},
    ]


def tail(records: int = 12) -> list[dict[str, Any]]:
    return [
        {"step": "token", "scopes": SCOPES},
        {"step": "recorded", "pair_id": "pair_a1b2c3d4"},
        {"step": "synced", "records": records},
        {
            "step": "active",
            "pair_id": "pair_a1b2c3d4",
            "our_words": OUR_WORDS,
            "peer_words": PEER_WORDS,
            "label": "alice",
            "peer_label": "bob",
            "namespaces": ["default"],
        },
    ]


HAPPY = f"""\
Pairing with {BOB} (https://bob.example/) ...
  ✓ manifest fetched + signature verified
  ✓ POST /v1/federation/pair → 200 OK
  ✓ peer token persisted (federation:sync, federation:subscribe)
  ✓ recorded on th_federation_pairs (pair_id: pair_a1b2c3d4)
  ✓ initial sync cursor advanced (12 records)

Pair active.
"""


def test_the_happy_path_is_the_pages(spl: Run, daemon: Daemon) -> None:
    daemon.answers[STREAM] = chunked(*head(200), *tail())
    result = spl("federation", "pair", URL)
    assert (result.code, result.out, result.err) == (0, HAPPY, "")
    assert daemon.sent(*STREAM).json() == {"url": URL, "wait_ms": 60_000}


def test_one_record_keeps_the_pages_form(spl: Run, daemon: Daemon) -> None:
    daemon.answers[STREAM] = chunked(*head(200), *tail(1))
    assert "cursor advanced (1 record)\n" in spl("federation", "pair", URL).out


def test_people_get_hints_beside_the_same_result(spl: Run, daemon: Daemon) -> None:
    daemon.answers[STREAM] = chunked(*head(200), *tail())
    result = spl("federation", "pair", URL, tty=True)
    assert result.out == HAPPY
    assert result.err == (
        "hint: compare keys by voice. alice: otter plum nine coal fern wax\n"
        "                             bob:   sable tin four oak rush dune\n"
        "hint: shared with bob: default; instances that bob shares it with receive it as well\n"
        "hint: watch it with: spl federation show pair_a1b2c3d4\n"
    )
    assert spl("federation", "pair", URL, "-q", tty=True).err == ""


def test_what_the_peer_left_out_and_what_crosses_is_told(spl: Run, daemon: Daemon) -> None:
    *before, last = tail()
    more = {"left_out": ["books", "diary"], "maps": [{"local": "music", "peer": "projects/music"}]}
    daemon.answers[STREAM] = chunked(*head(200), *before, {**last, **more})
    result = spl("federation", "pair", URL, tty=True)
    assert "hint: shared with bob: default, music:projects/music (L1); instances that bob" in result.err
    assert "hint: not agreed to by bob: books, diary; there it is private or missing\n" in result.err
    data = spl("federation", "pair", URL, "-o", "json").data
    assert (data["namespaces"], data["left_out"]) == (["default"], ["books", "diary"])


def test_every_flag_reaches_the_daemon(spl: Run, daemon: Daemon) -> None:
    daemon.answers[STREAM] = chunked(*head(200), *tail())
    flags = "--map music:projects/music --map a:b --namespace default --namespace music --no-strict"
    flags += f" --auto-generate-identity --wait 5m --expect-did {BOB} --expect-key z6Mk"
    flags += " --backfill --actors did:a --actors did:b"
    assert spl("federation", "pair", URL, *flags.split()).code == 0
    assert spl("federation", "pair", URL, "--from-now", "--wait", "0").code == 0
    first, second = (call.json() for call in daemon.calls)
    assert first == {
        "url": URL,
        "wait_ms": 300_000,
        "strict": False,
        "auto_generate_identity": True,
        "backfill": True,
        "maps": [{"local": "music", "peer": "projects/music"}, {"local": "a", "peer": "b"}],
        "namespaces": ["default", "music"],
        "expect_did": BOB,
        "expect_key": "z6Mk",
        "actors": ["did:a", "did:b"],
    }
    assert second == {"url": URL, "wait_ms": 0, "from_now": True}


def waiting(left_ms: int) -> dict[str, Any]:
    return {"step": "waiting", "pair_id": "pair_a1b2c3d4", "left_ms": left_ms}


ASKED = f"""\
Pairing with {BOB} (https://bob.example/) ...
  ✓ manifest fetched + signature verified
  ! POST /v1/federation/pair → 202 Accepted (bob approves by hand)
"""
WAITS = "  · waiting for approval, 4m12s left. On bob: spl aitl approve pair_a1b2c3d4\n"


def test_waiting_ends_with_8_and_says_that_the_daemon_goes_on(spl: Run, daemon: Daemon) -> None:
    daemon.answers[STREAM] = chunked(
        *head(202), waiting(251_100), waiting(1000), {"step": "pending", "pair_id": "pair_a1b2c3d4"}
    )
    result = spl("federation", "pair", URL, "--wait", "5m")
    assert (result.code, result.out) == (8, ASKED)
    assert result.err == WAITS + (
        "still pending: bob has not decided yet; the daemon goes on asking [handshake-pending]\n"
        "  fix       on bob: spl aitl approve pair_a1b2c3d4\n"
        "  watch     spl federation show pair_a1b2c3d4\n"
    )


@pytest.mark.parametrize(
    ("state", "records", "goes_on"),
    [
        ("active", 9000, "its first sync goes on by itself (9000 records so far)"),
        ("active", 1, "its first sync goes on by itself (1 record so far)"),
        ("active", 0, "its first sync goes on by itself"),
        ("establishing", 0, "the last message of the handshake and the first sync follow by themselves"),
    ],
)
def test_what_was_approved_and_is_not_finished_is_not_called_undecided(
    spl: Run, daemon: Daemon, state: str, records: int, goes_on: str
) -> None:
    """There is nothing left to approve: the command says what goes on, and how to wait for it."""
    completing = {"step": "completing", "pair_id": "pair_a1b2c3d4", "state": state, "records": records}
    daemon.answers[STREAM] = chunked(*head(200), *tail()[:2], completing)
    result = spl("federation", "pair", URL, "--wait", "1s")
    assert (result.code, result.out) == (8, "".join(HAPPY.splitlines(keepends=True)[:5]))
    assert result.err == (
        f"bob approved; {goes_on} [pair-completing]\n"
        "  wait      spl sync pair_a1b2c3d4\n"
        "  watch     spl federation show pair_a1b2c3d4\n"
    )
    data = spl("federation", "pair", URL, "-o", "json").data
    assert (data["state"], data["records"], data["pair_id"]) == (state, records, "pair_a1b2c3d4")


def test_an_approval_in_time_ends_as_a_pair(spl: Run, daemon: Daemon) -> None:
    daemon.answers[STREAM] = chunked(*head(202), waiting(252_000), *tail())
    result = spl("federation", "pair", URL)
    assert (result.code, result.err) == (0, WAITS)
    assert result.out.startswith(ASKED)
    assert result.out.endswith("\nPair active.\n")


@pytest.mark.parametrize(
    ("code", "message", "exit_code"),
    [
        ("handshake-401", "peer rejected handshake: 401 Unauthorized", 4),
        ("connect", "bob.example refused", 9),
        ("pair-exists", "m", 7),
        ("manifest-signature", "manifest signature does not verify against advertised DID", 10),
        ("identity-missing", "none", 7),
    ],
)
def test_a_failed_step_is_an_error_with_its_exit_code(
    spl: Run, daemon: Daemon, code: str, message: str, exit_code: int
) -> None:
    daemon.answers[STREAM] = chunked(head(200)[0], {"step": "error", "error": error(code, message)})
    result = spl("federation", "pair", URL)
    assert result.code == exit_code
    assert result.out == f"Pairing with {BOB} (https://bob.example/) ...\n"
    assert result.err.startswith(f"error: {message} [{code}]\n")
    assert "\n  fix " in result.err


def test_a_url_that_lacks_something_comes_as_a_whole_command(spl: Run, daemon: Daemon) -> None:
    refused = error(
        "url-invalid", "m", hint="if it was started with --lan: http://bob:9100/; if it has TLS: https://b/"
    )
    daemon.answers[STREAM] = (400, refused)
    assert re.findall("spl federation pair .*", spl("federation", "pair", "bob").err) == [
        "spl federation pair http://bob:9100/", "spl federation pair https://b/",
    ]  # fmt: skip


@pytest.mark.parametrize("end", [True, False])
def test_a_stream_without_an_end_is_no_success(spl: Run, daemon: Daemon, end: bool) -> None:
    daemon.answers[STREAM] = chunked(*head(200), end=end)
    result = spl("federation", "pair", URL)
    assert result.code == 9
    assert "[disconnected]" in result.err


def test_for_programs_the_steps_and_the_result(spl: Run, daemon: Daemon) -> None:
    daemon.answers[STREAM] = chunked(*head(202), waiting(5), *tail())
    data = spl("federation", "pair", URL, "-o", "json").data
    assert (data["pair_id"], data["state"], data["peer_words"]) == ("pair_a1b2c3d4", "active", PEER_WORDS)
    assert [step["step"] for step in data["steps"]] == [step["step"] for step in head(202) + tail()]
    assert len(spl("federation", "pair", URL, "-o", "jsonl").out.splitlines()) == 8
    daemon.answers[STREAM] = chunked(*head(202), {"step": "pending", "pair_id": "pair_a1b2c3d4"})
    result = spl("federation", "pair", URL, "-o", "json")
    assert (result.code, result.data["state"]) == (8, "establishing")
    assert ALICE in result.out


def test_a_step_of_a_newer_daemon_is_passed_over(spl: Run, daemon: Daemon) -> None:
    daemon.answers[STREAM] = chunked(*head(200), {"step": "novel"}, *tail())
    assert spl("federation", "pair", URL).out == HAPPY


WAITING = [*head(202), {"step": "waiting", "pair_id": "pair_a1b2c3d4", "left_ms": 32_000}]


def test_a_waiting_line_is_erased_before_the_next_step(spl: Run, daemon: Daemon) -> None:
    """The line drawn on stderr and the step on stdout share a terminal's row otherwise."""
    daemon.answers[STREAM] = chunked(*WAITING, *tail())
    result = spl("federation", "pair", URL, tty=True)
    assert result.out.endswith("\n\nPair active.\n")
    drawn = "\r\x1b[K  · waiting for approval, 32s left. On bob: spl aitl approve pair_a1b2c3d4"
    assert result.err.startswith(f"{drawn}\r\x1b[Khint: "), result.err


def test_an_interrupt_while_waiting_says_that_the_request_stays(
    spl: Run, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon goes on asking after Ctrl-C, so the operator learns how to withdraw."""

    def interrupted(*_: object) -> Iterator[dict[str, Any]]:
        yield from WAITING
        raise KeyboardInterrupt

    monkeypatch.setattr(Ctl, "lines", interrupted)
    result = spl("federation", "pair", URL)
    assert result.code == 130
    assert result.err.endswith(
        "interrupted; the daemon goes on asking, and the peer can still approve\n"
        "  withdraw  spl federation revoke pair_a1b2c3d4\n"
    )
