"""Log lines: their members, and that no bearer's secret reaches one."""

import errno
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from spl.core.event import event
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


def end_logging() -> None:
    """Undo `setup`."""
    for handler in logging.getLogger("spl").handlers[:]:
        logging.getLogger("spl").removeHandler(handler)
        handler.close()
    logging.getLogger("spl").propagate = True


def test_setup_writes_the_file(tmp_path: Path) -> None:
    logs.setup(tmp_path / "logs", "logfmt", "info")
    logging.getLogger("spl.federation").info("pair.activated", extra={"fields": {"pair": "p"}})
    logging.getLogger("spl.federation").debug("not.this")
    text = (tmp_path / "logs" / "spl.log").read_text()
    assert "event=pair.activated" in text
    assert "not.this" not in text
    end_logging()


def test_a_field_never_stands_for_a_member_of_the_line() -> None:
    line = json.loads(line_of("spl.federation", True, "consent.granted", {"level": "L1", "ts": "x", "pair": "p"}))
    assert (line["level"], line["pair"]) == ("info", "p")
    assert line["ts"] != "x"


HOSTILE = "\x1b]0;owned\x07 \x9b2J\x7f\x85\u202egnp\u2066\u200b\u200f\u2028\ufeff\ud800\u3164\u034f\U000e0100"


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
    assert not set("\u3164\u034f\U000e0100") & set(line)
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


class Kept(logging.Handler):
    """A handler that keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record)


def test_what_repeats_is_counted_at_all_handlers_alike_whoever_writes_it() -> None:
    """Five lines of a kind a minute; the next one says how many there were besides; others are not held up."""
    now_s, log, handlers = [0.0], logging.Logger("spl.any"), [Kept(), Kept()]
    counting = logs.RepeatFilter(lambda: now_s[0])
    for handler in handlers:
        handler.addFilter(counting)
        log.addHandler(handler)
    for number in range(100):
        log.warning("pair.odd", extra={"fields": {"pair": "pair_1", "peer": f"did:{number}"}})
    log.warning("pair.odd", extra={"fields": {"pair": "pair_2"}})
    now_s[0] = 61.0
    log.warning("pair.odd", extra={"fields": {"pair": "pair_1"}})
    for handler in handlers:
        fields = [vars(line)["fields"] for line in handler.lines]
        assert [each["pair"] for each in fields] == ["pair_1"] * 5 + ["pair_2", "pair_1"]
        assert fields[-1]["repeated"] == 95


def test_lines_that_were_asked_for_one_by_one_are_all_written() -> None:
    log, handler = logging.Logger("spl.any", logging.DEBUG), Kept()
    handler.addFilter(logs.RepeatFilter(lambda: 0.0))
    log.addHandler(handler)
    for _ in range(50):
        log.debug("sync.retry_later", extra={"fields": {"pair": "pair_1"}})
        log.error("config.reload_failed", extra={"fields": {"code": "config-invalid"}})
    assert len(handler.lines) == 100


def test_the_daemons_files_are_written_through_the_filter(tmp_path: Path) -> None:
    logs.setup(tmp_path, "logfmt", "info")
    try:
        for _ in range(50):
            logging.getLogger("spl.net").info("http.stalled", extra={"fields": {"peer": "127.0.0.1"}})
        assert (tmp_path / "spl.log").read_text().count("event=http.stalled") == logs.BURST
    finally:
        end_logging()


def test_lines_of_many_pairs_hold_up_no_error() -> None:
    log, handler = logging.Logger("spl.any"), Kept()
    handler.addFilter(logs.RepeatFilter(lambda: 0.0))
    log.addHandler(handler)
    for number in range(2 * logs.LINES_PER_MINUTE):
        log.warning("pair.odd", extra={"fields": {"pair": f"pair_{number}"}})
    log.error("store.readonly")
    assert len(handler.lines) == logs.LINES_PER_MINUTE + 1
    assert handler.lines[-1].getMessage() == "store.readonly"


def test_the_journal_gets_priorities_instead_of_times(tmp_path: Path) -> None:
    code = (
        "import logging, os, sys; from pathlib import Path; from spl.home import logs;"
        "from spl.core.event import event;"
        "found = os.fstat(2); os.environ['JOURNAL_STREAM'] = f'{found.st_dev}:{found.st_ino}';"
        "logs.setup(Path(sys.argv[1]), 'logfmt', 'info');"
        "logging.getLogger('spl.net').error(**event('a.b')); logging.getLogger('spl.net').info(**event('c.d'))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    first, second = done.stderr.splitlines()
    assert first.startswith("<3>level=error target=")
    assert second.startswith("<6>level=info target=")
    assert (tmp_path / "spl.log").read_text().startswith("ts=")


def test_a_full_file_gets_a_number_and_seven_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The newest lines are in `spl.log`, the ones before in `.1`; the eighth file of lines is gone."""
    monkeypatch.setattr(logs, "FILE_BYTES", 300)
    logs.setup(tmp_path, "logfmt", "info")
    for number in range(10):
        logging.getLogger("spl.test").info(**event("daemon.listening", msg=f"number {number} " + "x" * 300))
    names = ["spl.log", *(f"spl.log.{number}" for number in range(1, 7))]
    logging.getLogger("spl.test").info(**event("daemon.listening", msg="last"))
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    held = [re.findall(r"number \d|last", (tmp_path / name).read_text()) for name in names]
    assert held == [["last"], *([f"number {number}"] for number in range(9, 3, -1))]
    assert "Traceback" not in capsys.readouterr().err


def test_a_log_file_that_cannot_be_opened_or_written_ends_nobodys_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line goes to stderr alone, without a traceback; the file goes on when its cause ends."""
    monkeypatch.setattr(logs, "FILE_BYTES", 1)
    logs.setup(tmp_path, "logfmt", "info")
    log = logging.getLogger("spl.test")

    def refuses(*args: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, "open", refuses)
            for _ in range(3):
                log.info(**event("daemon.listening", msg="meanwhile"))
        log.info(**event("daemon.listening", msg="again"))
    finally:
        end_logging()
    said = capsys.readouterr().err
    assert (said.count("meanwhile"), said.count("again"), "Traceback" in said) == (3, 1, False)
    assert "again" in (tmp_path / "spl.log.1").read_text()


def test_a_reload_on_a_full_disk_goes_on_with_the_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file before keeps bytes that it cannot write; closing it fails."""
    logs.setup(tmp_path, "logfmt", "info")
    log = logging.getLogger("spl.test")
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        [file] = [each for each in logging.getLogger("spl").handlers if isinstance(each, logging.FileHandler)]
        os.dup2(full, file.stream.fileno())
        log.info(**event("daemon.listening", msg="unwritten"))
        logs.setup(tmp_path, "logfmt", "info")
        log.info(**event("daemon.listening", msg="written"))
    finally:
        end_logging()
        os.close(full)
    assert "written" in (tmp_path / "spl.log").read_text()
    assert "Traceback" not in capsys.readouterr().err
