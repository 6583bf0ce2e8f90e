"""Threads: lists in pages, records in order of arrival, sums."""

from typing import Any

import pytest

from spl.client.calls import quote
from tests.cli.conftest import Call, Daemon, Run, listed

NAMES = "/v1/threads?limit=500&reserved=1"


def a_record(seq: int, **more: Any) -> dict[str, Any]:
    return {
        "object": "record",
        "id": f"{seq:064x}",
        "thread": "th_r",
        "actor": "did:sync:user:ann",
        "act": "KNOW",
        "clock": seq,
        "parents": [],
        "data_type": "SCALAR",
        "judged_by": None,
        "body": {"kind": "core.know", "text": f"text {seq}"},
        "sequence": seq,
        "vouched_by": "did:sync:instance:a",
        **more,
    }


def paged(daemon: Daemon, records: list[dict[str, Any]], page: int) -> None:
    """Serve records in pages of at most `page`, shorter than asked for, as the daemon may."""
    for since in range(len(records) + 1):
        for limit in range(1, 1001):
            target = f"/v1/records?thread=th_r&since={since}&limit={limit}"
            daemon.answers["GET", target] = listed(*records[since : since + min(page, limit)])


def test_list_walks_all_pages(spl: Run, daemon: Daemon) -> None:
    daemon.answers["GET", "/v1/threads?limit=500"] = listed(
        {"thread": "th a", "records": 3, "last_at": "2026-11-23T05:59:00.000Z"}
    )
    daemon.answers["GET", "/v1/threads?limit=500&after=th%20a"] = listed(
        {"thread": "th_b", "records": 1, "last_at": None}
    )
    daemon.answers["GET", "/v1/threads?limit=500&after=th_b"] = listed()
    assert spl("thread", "list", tty=True).out == "THREAD  RECORDS  LAST\nth a    3        1m ago\nth_b    1        -\n"
    daemon.answers["GET", "/v1/threads?limit=500&reserved=1"] = listed()
    assert spl("thread", "list", "--reserved").out == ""


def test_records_in_order_of_arrival(spl: Run, daemon: Daemon) -> None:
    long = {"x": "y" * 100}
    paged(daemon, [a_record(1), a_record(2, body=long), a_record(3)], 2)
    lines = spl("thread", "records", "th_r").out.splitlines()
    assert lines[0].split() == ["SEQ", "ACT", "ACTOR", "CLOCK", "ID", "BODY"]
    assert lines[1] == f"1    KNOW  did:sync:user:ann  1      {1:064x}  text 1"
    assert lines[2].endswith('{"x":"' + "y" * 100 + '"}')
    shown = spl("thread", "records", "th_r", tty=True, env={"COLUMNS": "100"}).out.splitlines()
    assert shown[1] == "1    KNOW  did:sync:user:ann  1      0000000000000000  text 1"
    assert shown[2].endswith("y…")
    assert len(shown[2]) == 100
    assert [item["sequence"] for item in spl("thread", "records", "th_r", "-o", "json").data] == [1, 2, 3]


def test_a_limit_says_where_to_go_on(spl: Run, daemon: Daemon) -> None:
    paged(daemon, [a_record(n) for n in range(1, 6)], 2)
    result = spl("thread", "records", "th_r", "--limit", "3", "-o", "jsonl")
    assert len(result.out.splitlines()) == 3
    assert result.err == "continue with: spl thread records th_r --since 3\n"
    assert len(spl("thread", "records", "th_r", "--since", "3", "-o", "jsonl").out.splitlines()) == 2


@pytest.mark.parametrize("command", ["records", "show"])
def test_an_unknown_thread_exits_6(spl: Run, daemon: Daemon, command: str) -> None:
    paged(daemon, [], 2)
    daemon.answers["GET", NAMES] = listed()
    result = spl("thread", command, "th_r")
    assert (result.code, result.out) == (6, "")
    assert result.err.startswith("error: there is no thread th_r [not-found]\n")


@pytest.mark.parametrize("begin", ["th_g", "th_garden_…"])
def test_the_beginning_of_a_name_does_as_a_narrow_table_cuts_it(spl: Run, daemon: Daemon, begin: str) -> None:
    path, names = "/v1/threads/th_garden_plan/state", ["th_garden_plan", "th_r"]
    daemon.answers["GET", f"/v1/threads/{quote(begin)}/state"] = {**STATE, "records": 0}
    daemon.answers["GET", path] = {**STATE, "thread": "th_garden_plan"}
    daemon.answers["GET", NAMES] = listed(*({"thread": name} for name in names))
    daemon.answers["GET", f"{NAMES}&after=th_r"] = listed()
    assert spl("thread", "state", begin).out.startswith("thread            th_garden_plan\n")
    daemon.answers["GET", NAMES] = listed(*({"thread": name} for name in ["th_garden_fence", *names]))
    result = spl("thread", "state", begin)
    assert result.code == 6
    assert "begins th_garden_fence, th_garden_plan [ambiguous]" in result.err


def test_show_sums_a_thread_up(spl: Run, daemon: Daemon) -> None:
    others = [a_record(n, actor=f"did:a{n}", act="DO", vouched_by="did:sync:instance:b") for n in range(3, 15)]
    paged(daemon, [a_record(1), a_record(2), *others], 5)
    lines = spl("thread", "show", "th_r").out.splitlines()
    assert lines[:2] == ["thread            th_r", "records           14"]
    assert "acts              DO  12" in lines
    assert "actors            did:sync:user:ann  2" in lines
    assert "                  and 3 more" in lines
    assert "vouched by        did:sync:instance:b  12" in lines
    assert lines[-2:] == [f"latest            {14:064x}", "                  DO text 14"]
    data = spl("thread", "show", "th_r", "-o", "json").data
    assert (data["records"], data["acts"], data["latest"]["sequence"]) == (14, {"KNOW": 2, "DO": 12}, 14)


def test_hostile_text_stays_text(spl: Run, daemon: Daemon) -> None:
    def answer(call: Call) -> dict[str, object]:
        return listed(a_record(1, body={"text": "\x1b]0;owned\x07\n\u202ex"})) if "since=0" in call.target else listed()

    for since in (0, 1):
        for limit in (1000, 999, 500):
            daemon.answers["GET", f"/v1/records?thread=th_r&since={since}&limit={limit}"] = answer
    out = spl("thread", "records", "th_r").out
    assert len(out.splitlines()) == 2
    assert "\\x1b]0;owned\\x07\\x0a\\u202ex" in out


STATE = {"object": "state", "thread": "th_r", "fold": "sum", "field": "order.total", "rule": "spent", "value": 4.5,
         "complete": True, "records": 3, "sequence": 17}  # fmt: skip


def test_the_state_of_a_thread(spl: Run, daemon: Daemon) -> None:
    daemon.answers["GET", "/v1/threads/th_r/state"] = STATE
    assert spl("thread", "state", "th_r").out == (
        "thread            th_r\n"
        "fold              sum of order.total (rule spent)\n"
        "records           3, the last one at sequence 17\n"
        "value             4.5\n"
    )
    assert spl("thread", "state", "th_r", "-o", "json").data == STATE
    latest = {**STATE, "fold": "latest", "field": None, "rule": None, "value": {"n": 1}}
    daemon.answers["GET", "/v1/threads/th_r/state"] = latest
    shown = spl("thread", "state", "th_r").out.splitlines()
    assert shown[1] == "fold              latest (no rule covers the thread)"
    assert [line.strip() for line in shown[3:]] == ["value             {", '"n": 1', "}"]


def test_a_state_cannot_drive_a_terminal_and_tells_when_it_is_cut(spl: Run, daemon: Daemon) -> None:
    hostile = {**STATE, "fold": "set", "value": ["\x1b[2J", "a\u202e"], "complete": False}
    daemon.answers["GET", "/v1/threads/th_r/state"] = hostile
    result = spl("thread", "state", "th_r")
    assert not {"\x1b", "\u202e"} & set(result.out)
    assert "more values than a set holds" in result.err
    daemon.answers["GET", "/v1/threads/th_r/state"] = {**hostile, "value": "\x1b[2J\n\n\u202e"}
    assert not {"\x1b", "\u202e"} & set(spl("thread", "state", "th_r").out)


def test_the_state_of_an_unknown_thread(spl: Run, daemon: Daemon) -> None:
    daemon.answers["GET", "/v1/threads/th_r/state"] = {**STATE, "value": 0, "records": 0, "sequence": 0}
    daemon.answers["GET", NAMES] = listed()
    result = spl("thread", "state", "th_r")
    assert result.code == 6
    assert "there is no thread th_r" in result.err
