"""`spl sink`: what is sent to the daemon, and what its answers look like."""

from typing import Any

import pytest

from tests.cli.conftest import Daemon, Run, listed

FAN: dict[str, Any] = {
    "object": "sink", "name": "fan", "url": "nats://127.0.0.1:4222", "namespaces": ["music"], "subjects": "shard",
    "state": "active", "open": True, "from_seq": 0, "creds": None, "ca": None, "since": "now", "position_seq": 9,
    "sent_records": 1200, "lag_records": 3, "last_acked_at": None, "server": "nats-server 2.15.1", "attempt": 0,
    "finding": None, "error": None, "fix": None, "stream": "SPL_hub_1", "filters": ["spl.1.music.>"],
}  # fmt: skip
FULL = {**FAN, "open": False, "finding": "sink-full", "error": "no room", "fix": "spl sink resume NAME"}


def test_add_names_files_absolutely_and_makes_a_name(spl: Run, daemon: Daemon) -> None:
    daemon.answers["POST", "/v1/sinks"] = FAN
    result = spl("sink", "add", "nats://127.0.0.1:4222", "--namespace", "music", "--creds", "hub.creds", tty=True)
    sent = daemon.sent("POST", "/v1/sinks").json()
    assert result.out == "fan  added: music -> nats://127.0.0.1:4222\n"
    assert sent["name"] == "127-0-0-1-4222"
    assert sent["creds"].startswith("/")
    assert (sent["from"], sent["subjects"], sent["namespaces"]) == ("0", "shard", ["music"])
    assert "in full" in result.err


def test_list_and_show(spl: Run, daemon: Daemon) -> None:
    daemon.answers["GET", "/v1/sinks"] = listed(FAN, {**FULL, "name": "two"}, {**FAN, "name": "off", "state": "paused"})
    lines = spl("sink", "list").out.splitlines()
    assert lines[1].split()[:4] == ["fan", "open", "music", "3"]
    assert "failing" in lines[2]
    assert "sink-full" in lines[2]
    assert "paused" in lines[3]
    daemon.answers["GET", "/v1/sinks/fan"] = FULL
    result = spl("sink", "show", "fan")
    assert "stream       SPL_hub_1\n" in result.out
    assert "spl sink resume fan" in result.err
    daemon.answers["GET", "/v1/sinks"] = listed()
    assert "spl sink add" in spl("sink", "list").err


@pytest.mark.parametrize("action", ["pause", "resume", "remove"])
def test_actions(spl: Run, daemon: Daemon, action: str) -> None:
    daemon.answers["POST", f"/v1/sinks/fan/{action}"] = {**FAN, "state": "paused"}
    result = spl("sink", action, "fan")
    assert result.code == 0
    assert result.out.startswith("fan  ")


def test_test_says_what_a_small_server_leaves_out(spl: Run, daemon: Daemon) -> None:
    told = {
        "object": "sink_test", "name": "fan", "server": "nats-server 2.15.1", "max_payload_bytes": 1048576,
        "takes_every_record": False, "stream": "SPL_hub_1", "state": {"messages": 1, "bytes": 700},
    }  # fmt: skip
    daemon.answers["POST", "/v1/sinks/fan/test"] = told
    result = spl("sink", "test", "fan")
    assert "SPL_hub_1: 1 message, 700 bytes" in result.out
    assert "pointer" in result.err
    daemon.answers["POST", "/v1/sinks/fan/test"] = {**told, "state": None, "takes_every_record": True}
    assert "not made yet" in spl("sink", "test", "fan").out
    daemon.answers["POST", "/v1/sinks/fan/test"] = {"object": "sink_test", "name": "fan", "program": "/bin/cat"}
    assert "/bin/cat; it was not run" in spl("sink", "test", "fan").out


def test_test_shows_what_is_wrong_with_the_sink_though_the_server_answers(spl: Run, daemon: Daemon) -> None:
    daemon.answers["POST", "/v1/sinks/fan/test"] = {**FULL, "program": "/bin/cat", "said": "no room"}
    result = spl("sink", "test", "fan")
    assert result.code == 0
    assert "! no room [sink-full]: no room\n  fix       spl sink resume fan\n" in result.err


def test_acl_prints_a_block_for_the_server(spl: Run, daemon: Daemon) -> None:
    daemon.answers["GET", "/v1/sinks/fan/acl?pair=bob"] = {
        "pair_id": "pair_1", "publish": ["$JS.ACK.S.pair_1.>"], "subscribe": ["_INBOX_pair_1.>"],
    }  # fmt: skip
    out = spl("sink", "acl", "fan", "bob").out
    assert '  publish: { allow: [\n    "$JS.ACK.S.pair_1.>"\n  ] }\n' in out


def test_consent_list_names_sinks(spl: Run, daemon: Daemon) -> None:
    row = {
        "object": "grant", "pair_id": None, "peer_did": None, "sink": "fan", "direction": "out", "namespace": "music",
        "peer_namespace": "music", "granted": "L0", "level": "L0", "version": 0, "missing": "", "fix": "",
        "at_peer": False, "code": "", "maps": ["music", "music"],
    }  # fmt: skip
    daemon.answers["GET", "/v1/consent/grants"] = listed(row)
    assert "sink fan  every reader  music -> its readers  L0" in spl("consent", "list").out
