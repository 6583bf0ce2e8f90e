"""Every number that becomes a time or a size, with values that no clock and no memory holds.

Each is refused with its code where it comes in: in a flag, in JSON, in a query, in the file.  Nothing of it is stored,
and the daemon runs on, also after a restart.
"""

import contextlib
import json
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.attack.probes import crash_of, instances, log_text, paired, pid_of
from tests.e2e.conftest import AUTO
from tests.e2e.harness import DEADLINE_S, Instance, eventually

BEATS: Final = "[limits]\nbeat_s = 0.1\ncheck_s = 0.5\n"
"""What computes with stored times runs often, so that one that crashes it does so at once."""

DURATIONS: Final = (
    "9999999d", "99999999999999999999d", "1" * 400 + "s", "-1s", "-5", "0", "0s", "0ms", "NaN", "nan", "inf",
    "Infinity", "1e9", "1.5h", "0x10", "١s", "", " ", "5 m", "1y", "null", "true",
)  # fmt: skip
HUGE: Final = (10**9 * 86_400_000, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 10**300, -1, -(2**63), 0)
ODD: Final = ("NaN", "Infinity", "-Infinity", "1e400", "1.5", "true", "null", '"60000"', "[]", "{}")
REFUSALS: Final = (400, 413, 422)


@dataclass(frozen=True)
class Pair:
    """Two paired daemons, of which the first is attacked."""

    served: Instance
    peer: Instance
    pair_id: str

    def facts(self) -> tuple[object, ...]:
        """Return what a refused value must not change."""
        shown = self.served.pair(self.pair_id)
        return tuple(shown[name] for name in ("state", "mode", "poll_interval_ms"))


class Worlds:
    """The pair of the whole file; a new one after a test that harmed it, so that each test tells of itself."""

    def __init__(self, folders: pytest.TempPathFactory, stack: contextlib.ExitStack) -> None:
        self._folders, self._stack = folders, stack
        self._pair: Pair | None = None

    def take(self) -> Pair:
        """Return the pair, made when there is none."""
        if self._pair is None:
            make = self._stack.enter_context(instances(self._folders.mktemp("values")))
            served, bob = make("served", BEATS).start(), make("bob", AUTO).start()
            self._pair = Pair(served, bob, paired(served, bob))
        return self._pair

    def spoil(self) -> None:
        """Give the pair up."""
        self._pair = None


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worlds]:
    """The maker of the pair."""
    with contextlib.ExitStack() as stack:
        yield Worlds(tmp_path_factory, stack)


@pytest.fixture
def pair(worlds: Worlds) -> Iterator[Pair]:
    """The pair; afterwards the daemon is the same process with the same settings, and did its rounds without fault."""
    found = worlds.take()
    pid, before, logged = pid_of(found.served), found.facts(), len(log_text(found.served))
    yield found
    try:
        beaten(found.served)
        assert pid_of(found.served) == pid
        assert found.facts() == before, "a value that was refused is in force"
        text = log_text(found.served)[logged:]
        assert "Traceback" not in text, text[:3000]
    except BaseException:
        worlds.spoil()
        raise


def beaten(instance: Instance) -> None:
    """Wait until the daemon looked at its pairs again: its status is computed from what is stored."""
    for _ in range(3):
        for path in ("/v1/status", "/v1/doctor", "/v1/federation/pairs"):
            pid_of(instance)
            assert instance.api("GET", path).status == 200


def assert_refused_by_flag(instance: Instance, *words: str) -> None:
    """Fail unless the command ends with a usage error, a code and no traceback."""
    done = instance.run(*words, code=None)
    assert done.code in (2, 78), f"spl {' '.join(words)}: exit {done.code}\n{done.out}{done.err}"
    assert done.err.startswith("error: "), done.err
    assert "[" in done.err.partition("\n")[0], f"no code: {done.err}"
    assert "Traceback" not in done.err, done.err


# -- flags


FLAGS: Final = {
    "set-poll-interval": ("federation", "set-poll-interval", "{pair}", "{value}"),
    "wait": ("federation", "pair", "{url}", "--wait={value}"),
    "ttl": ("token", "mint", "--scopes", "records:read", "--ttl={value}"),
}
TYPED: Final = ("9999999d", "1" * 400 + "s", "-1s", "0s", "NaN", "1.5h", "")
ALLOWED: Final = {"wait": {"0s"}}
"""No waiting at all is a wish that can be had."""


@pytest.mark.parametrize("value", TYPED, ids=lambda value: value[:12] or "nothing")
@pytest.mark.parametrize("flag", FLAGS)
def test_a_duration_that_no_clock_holds_is_refused(pair: Pair, flag: str, value: str) -> None:
    """Huge ones, negative ones, none and nonsense: a usage error before anything is stored or dialled."""
    if value in ALLOWED.get(flag, ()):
        return
    filled = {"{pair}": pair.pair_id, "{url}": "http://127.0.0.1:1/", "{value}": value}
    words = FLAGS[flag]
    for mark, text in filled.items():
        words = tuple(word.replace(mark, text) for word in words)
    assert_refused_by_flag(pair.served, *words)


@pytest.mark.parametrize("limit", ["0", "-1", "1.5", "1e9"])
def test_a_count_that_nothing_holds_is_refused(pair: Pair, limit: str) -> None:
    """The same for counts."""
    assert_refused_by_flag(pair.served, "thread", "records", "th_a", f"--limit={limit}")


# -- JSON


NUMBERS: Final = {
    "poll interval": ("POST", "/v1/federation/pairs/{pair}/poll-interval", '{"interval_ms":VALUE}', set()),
    "wait": ("POST", "/v1/federation/pairs", '{"url":"http://127.0.0.1:1/","wait_ms":VALUE}', {"0"}),
    "ttl": ("POST", "/v1/tokens", '{"scopes":["records:read"],"ttl_ms":VALUE}', set()),
    "rule priority": (
        "POST", "/v1/config/fold-rules", '{"name":"a","thread":"th_*","fold":"last","field":"n","priority":VALUE}',
        {"0", "-1"},
    ),
}  # fmt: skip
"""Name -> method, path, body, and the values of those below that are good ones."""


@pytest.mark.parametrize("value", [*map(str, HUGE), *ODD], ids=lambda value: value[:20])
@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_that_no_clock_holds_is_refused(pair: Pair, name: str, value: str) -> None:
    """Each is a 4xx with a code, also where the answer is a stream of steps."""
    method, path, body, good = NUMBERS[name]
    if value in good:
        return
    headers = {"authorization": f"Bearer {pair.served.token}", "content-type": "application/json"}
    text = body.replace("VALUE", value).encode()
    answer = pair.served.request(method, path.replace("{pair}", pair.pair_id), text, headers)
    assert answer.status in REFUSALS, f"{name} = {value[:40]}: {answer.status} {answer.body[:300]!r}"
    assert answer.code in ("BAD_FIELD", "BAD_JSON", "USAGE"), answer.body


QUERIES: Final = (
    "/v1/records?limit=VALUE", "/v1/records?since=VALUE", "/v1/threads?limit=VALUE",
    "/v1/threads/th_a/records?limit=VALUE", "/v1/threads/th_a/records?since=VALUE",
    "/v1/threads/th_a/watch?since_clock=VALUE",
)  # fmt: skip
BAD_COUNTS: Final = ("-1", "9223372036854775808", "1" * 400, "1.5", "NaN", "1e3", "", "%2B1", "0x10", "%D9%A1", "1_0")


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_that_nothing_holds_is_refused(pair: Pair, query: str) -> None:
    """Counts and positions in the query."""
    for value in BAD_COUNTS:
        answer = pair.served.api("GET", query.replace("VALUE", value))
        assert (answer.status, answer.code) == (400, "BAD_FIELD"), f"{query} {value[:20]!r}: {answer.body[:300]!r}"


@pytest.mark.parametrize("value", [str(2**63), str(2**64), "-1", "1.5", "1e400", "NaN", "true", '"1"', "1" * 309])
def test_a_clock_that_no_record_has_is_refused(pair: Pair, value: str) -> None:
    """A record's clock is a number of 63 bits."""
    body = '{"act":"KNOW","actor":"did:sync:user:a","thread":"th_a","body":{},"clock":VALUE}'
    headers = {"authorization": f"Bearer {pair.served.token}", "content-type": "application/json"}
    answer = pair.served.request("POST", "/v1/records", body.replace("VALUE", value).encode(), headers)
    assert answer.status == 400, answer.body
    assert answer.code in ("BAD_FIELD", "BAD_JSON"), answer.body


# -- the file and the environment

LIMITS: Final = ("heartbeat_s", "token_ttl_s", "page_records")
BAD_LIMITS: Final = (
    "0", "-1", "1e400", "nan", "inf", "-inf", "99999999999999999999999999", "true", '"1"', "[]", "1979-01-01",
)  # fmt: skip
FAILED: Final = "event=config.reload_failed"


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    """A daemon that reads its file again and again."""
    with instances(tmp_path_factory.mktemp("files")) as make:
        yield make("serving").start()


def assert_refused_by_file(instance: Instance, *texts: str) -> None:
    """Fail unless a running daemon refuses each of these files, says which code, and serves on."""
    assert instance.process is not None
    for text in texts:
        instance.configure(text)
        before = log_text(instance).count(FAILED)
        instance.process.send_signal(signal.SIGHUP)
        eventually(lambda before=before: log_text(instance).count(FAILED) > before, f"the daemon refuses {text!r}")
    lines = [line for line in log_text(instance).splitlines() if FAILED in line]
    assert all("config-invalid" in line for line in lines), lines
    assert not crash_of(instance)
    assert instance.is_ready()


def assert_not_started(instance: Instance) -> None:
    """Fail unless the daemon ends by itself as one whose configuration is wrong."""
    instance.launch()
    assert instance.process is not None
    code = instance.process.wait(DEADLINE_S)
    assert code == 78, f"exit {code}\n{instance.output()}"
    last = instance.output().rpartition("error: ")[2]
    assert "[config-invalid]" in last, last
    assert "Traceback" not in last, last


@pytest.mark.parametrize("limit", LIMITS)
def test_a_limit_that_is_no_bound_is_refused(serving: Instance, limit: str) -> None:
    """Every value of the limits is a finite number above 0 and at most its default."""
    assert_refused_by_file(serving, *(f"[limits]\n{limit} = {value}\n" for value in BAD_LIMITS))


def test_a_poll_interval_of_the_file_is_a_duration(serving: Instance) -> None:
    """What `set-poll-interval` refuses, the file refuses, too."""
    line = "[federation]\npoll_interval = {}\n"
    assert_refused_by_file(serving, *(line.format(json.dumps(value, ensure_ascii=False)) for value in DURATIONS))


@pytest.mark.parametrize("value", ["9999999d", "NaN", ""])
def test_no_daemon_starts_with_a_poll_interval_that_no_clock_holds(tmp_path: Path, value: str) -> None:
    """Neither from the file nor from the environment."""
    with instances(tmp_path) as make:
        assert_not_started(make("served", f'[federation]\npoll_interval = "{value}"\n'))
        other = make("other")
        other.env["SPL_FEDERATION_POLL_INTERVAL"] = value
        assert_not_started(other)


def test_no_daemon_starts_with_a_limit_that_is_no_bound(tmp_path: Path) -> None:
    """The start refuses what the reading of the file again refuses."""
    with instances(tmp_path) as make:
        assert_not_started(make("served", "[limits]\nheartbeat_s = inf\n"))


# -- what was stored before


def test_the_longest_interval_that_is_taken_runs(worlds: Worlds) -> None:
    """Right below what is refused: stored, shown, computed with, and read again after a restart."""
    pair = worlds.take()
    worlds.spoil()
    served, path = pair.served, f"/v1/federation/pairs/{pair.pair_id}/poll-interval"
    before = served.pair(pair.pair_id)
    low, high = 1000, 2**53
    while low + 1 < high:
        middle = (low + high) // 2
        taken = served.api("POST", path, {"interval_ms": middle}).status == 200
        low, high = (middle, high) if taken else (low, middle)
    served.run("federation", "set-mode", pair.pair_id, "polling")
    assert served.api("POST", path, {"interval_ms": low}).status == 200
    beaten(served)
    for words in (("federation", "list"), ("federation", "show", pair.pair_id), ("status",), ("doctor",)):
        done = served.run(*words, code=None)
        assert "Traceback" not in done.err, done.err
    served.stop()
    served.start()
    beaten(served)
    assert served.pair(pair.pair_id)["poll_interval_ms"] == low
    served.api("POST", path, {"interval_ms": before["poll_interval_ms"]})
    served.run("federation", "set-mode", pair.pair_id, before["mode"])
