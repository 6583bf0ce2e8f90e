"""Log lines: their members, and that no bearer's secret reaches one."""

import json
import logging
import sys
from pathlib import Path

import pytest

from spl.core.identity import bearer
from spl.home import logs


def line_of(caplog_name: str, as_json: bool, message: str, fields: dict[str, object] | None = None) -> str:
    record = logging.LogRecord(caplog_name, logging.INFO, "x.py", 1, message, (), None)
    if fields is not None:
        record.fields = fields
    return logs.Formatter(as_json).format(record)


def test_federation_lines_carry_the_target_that_the_operators_page_names() -> None:
    line = line_of("spl.federation", False, "pair.activated", {"pair": "pair_a1b2c3d4", "ms": 412})
    assert " level=info target=syncropel_engine::federation event=pair.activated pair=pair_a1b2c3d4 ms=412 " in line
    assert line.endswith('msg="pair activated"')


def test_json_lines_have_the_same_members() -> None:
    value = json.loads(line_of("spl.federation", True, "pair.activated", {"pair": "p"}))
    assert list(value) == ["ts", "level", "target", "event", "pair", "msg"]


def test_values_that_would_break_the_line_are_quoted() -> None:
    line = line_of("spl.sync", False, "x.y", {"text": 'a "b"\nevent=forged'})
    assert "\n" not in line
    assert 'text="a \\"b\\"\\nevent=forged"' in line


def test_no_secret_reaches_a_line() -> None:
    token = bearer.mint_text("home", "sa_0a1b2c3d", b"s" * 32)
    secret = token.rpartition("_")[2]
    for as_json in (False, True):
        assert secret not in line_of("spl.net", as_json, f"got {token}", {"header": f"Bearer {token}"})


def test_setup_writes_the_file(tmp_path: Path) -> None:
    logs.setup(tmp_path / "logs", "logfmt", "info")
    logging.getLogger("spl.federation").info("pair.activated", extra={"fields": {"pair": "p"}})
    logging.getLogger("spl.federation").debug("not.this")
    text = (tmp_path / "logs" / "spl.log").read_text()
    assert "event=pair.activated" in text
    assert "not.this" not in text
    for handler in logging.getLogger("spl").handlers[:]:
        logging.getLogger("spl").removeHandler(handler)
        handler.close()
    logging.getLogger("spl").propagate = True


def test_a_field_never_stands_for_a_member_of_the_line() -> None:
    line = json.loads(line_of("spl.federation", True, "consent.granted", {"level": "L1", "ts": "x", "pair": "p"}))
    assert (line["level"], line["pair"]) == ("info", "p")
    assert line["ts"] != "x"


HOSTILE = "\x1b]0;owned\x07 \x9b2J\x7f\x85\u202egnp\u2066\u200b\u200f\u2028\ufeff\ud800"


@pytest.mark.parametrize("as_json", [False, True])
def test_nothing_unprintable_reaches_a_line(as_json: bool) -> None:
    """In values, in messages and in traces; what was there can still be read."""
    record = logging.LogRecord("spl.net", logging.INFO, "", 0, "peer.refused", None, None)
    record.fields = {"signer": HOSTILE, "plain": "a\u202eb", "codes": [HOSTILE]}
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        record.exc_info = sys.exc_info()
    line = logs.Formatter(as_json).format(record)
    assert line.isprintable()
    assert "\\u001b]0;owned" in line
    line.encode()
    if as_json:
        assert json.loads(line)["plain"] == "a\u202eb"
    else:
        assert 'plain="a\\u202eb"' in line


def test_a_kind_of_line_is_written_once_a_minute_with_the_number_of_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now_s = [0.0]
    lines = logs.CountedLog(logging.getLogger("spl.federation"), lambda: now_s[0])
    with caplog.at_level(logging.INFO):
        for second in range(130):
            now_s[0] = float(second)
            lines.warning("sync.failed", "pair_1", "timeout", attempt=second)
        lines.warning("sync.failed", "pair_2", "timeout")
        lines.info("sync.failed", "pair_1", "dns")
    found = [vars(line)["fields"] for line in caplog.records]
    assert [(each["pair"], each["code"], each.get("repeated")) for each in found] == [
        ("pair_1", "timeout", None), ("pair_1", "timeout", 59), ("pair_1", "timeout", 59),
        ("pair_2", "timeout", None), ("pair_1", "dns", None),
    ]  # fmt: skip
