"""GET /metrics: the daemon's facts as Prometheus text 0.0.4, from the same values as `spl status`.

The number of series follows the number of pairs and of nothing else: no label holds what a request brings.  States are
0 or 1 and never absent, times stand beside lags, because a lag alone says the same while nothing is written, and what
was never seen is NaN.  A peer's own words stand in `spl_pair_info` alone.

Pairs are looked at a few at a time, so that a scrape of 1,000 pairs holds up no write for longer than a few ms.
"""

import asyncio
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from math import nan
from typing import Final, NamedTuple
from weakref import WeakKeyDictionary

from ..core.errors import printable
from ..core.identity.did import PREFIX, label_of
from ..core.pair.modes import ENGINE
from ..core.pair.pair import Pair, Phase
from ..core.recent import LAG_BOUNDS_MS, Histogram
from ..core.version import VERSION
from ..doctor.catalogue import CATALOGUE, FAIL
from ..doctor.examine import Doctor
from ..doctor.overview import PairOverview
from ..net.routes import Request, Response
from .admin import service_findings
from .answers import PROMETHEUS, records_kept
from .auth import Principal
from .services import Services

PAIRS_AT_ONCE: Final = 8
TEXT_CHARS_MAX: Final = 256
"""Of a label that holds a peer's words."""
LAG_BUCKETS: Final = (0, 3, 6, 8, 10)
"""Those shown of a pair, of which there may be a thousand: 10 ms, 100 ms, 1 s, 5 s, 30 s."""
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


class _PairGauge(NamedTuple):
    """One number of each pair; None is not known."""

    name: str
    help: str
    value: Callable[[PairOverview], float | None]


def _seconds(ms: int | None) -> float | None:
    return None if ms is None else ms / 1000


def _expires(pair: Pair) -> float | None:
    ends_ms = [token.expires_at_ms for token in (pair.issued_by_us, pair.issued_to_us) if token is not None]
    return _seconds(min(ends_ms, default=None))


PER_PAIR: Final = (
    _PairGauge("spl_pair_lag_records", "Records that the peer holds for us and we do not have yet.",
               lambda view: view.reading.lag_records),
    _PairGauge("spl_pair_outbound_lag_records", "Records that we hold for the peer and it has not confirmed.",
               lambda view: view.offered.lag_records),
    _PairGauge("spl_pair_stalled", "1 while records wait and none moves, as a finding says.",
               lambda view: bool(view.stalled)),
    _PairGauge("spl_pair_last_success_timestamp_seconds", "When we last read the peer to its end.",
               lambda view: _seconds(view.reading.last_sync_ms)),
    _PairGauge("spl_pair_last_received_timestamp_seconds", "When records of the peer were last stored.",
               lambda view: _seconds(view.moved_ms)),
    _PairGauge("spl_pair_last_confirmed_timestamp_seconds", "When the peer last confirmed what it holds.",
               lambda view: _seconds(view.offered.acked_ms)),
    _PairGauge("spl_pair_last_heard_timestamp_seconds", "When the peer was last heard, in either direction.",
               lambda view: _seconds(view.reading.heard_ms)),
    _PairGauge("spl_pair_token_expiry_timestamp_seconds", "When the first of the pair's two tokens ends.",
               lambda view: _expires(view.pair)),
)  # fmt: skip
"""Gauges with the label pair alone."""


class _Turn:
    """Where scrapers wait while a text is written: one at a time, so that they leave the loop to others in between."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.begun = self.waiting = 0
        self.text = b""


_TURNS: WeakKeyDictionary[Doctor, _Turn] = WeakKeyDictionary()
"""By daemon."""


async def scrape(request: Request, principal: Principal, services: Services) -> Response:
    """GET /metrics: everything, by families; who waited while a text was begun takes that one."""
    turn = _TURNS.setdefault(services.doctor, _Turn())
    begun = turn.begun
    turn.waiting += 1
    try:
        async with turn.lock:
            if turn.begun == begun or not turn.text:
                turn.text = b""
                await asyncio.sleep(0)
                turn.begun += 1
                turn.text = await _written(services)
            return Response(200, turn.text, PROMETHEUS)
    finally:
        turn.waiting -= 1
        if not turn.waiting:
            turn.text = b""


async def _written(services: Services) -> bytes:
    families = _Families()
    _daemon(families, services)
    found = Counter((item.code, item.severity) for item in services.doctor.own_problems())
    found.update((item.code, item.severity) for item in service_findings(services))
    _sinks(families, services)
    pairs = _Pairs(families, services)
    for number, pair in enumerate(services.doctor.watched()):
        if number % PAIRS_AT_ONCE == PAIRS_AT_ONCE - 1:
            await asyncio.sleep(0)
        view = services.doctor.overview(pair)
        for item in view.findings:
            found[item.code, item.severity] += 1
        if not pair.ended:
            pairs.add(view)
    _errors(families, services)
    _findings(families, found)
    return families.text()


class _Families:
    """Samples by family, as the format wants them; a family is there from its first mention, also without a sample."""

    def __init__(self) -> None:
        self._lines: dict[str, list[str]] = {}

    def family(self, name: str, text: str, kind: str = "gauge") -> list[str]:
        """Return the lines of a family, to be added to."""
        lines = self._lines.get(name)
        if lines is None:
            lines = self._lines[name] = [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
        return lines

    def one(self, name: str, text: str, value: float | None, **labels: str) -> None:
        """Add one sample of a gauge."""
        inside = _labels(**labels)
        self.family(name, text).append(f"{name}{{{inside}}} {_number(value)}" if inside else f"{name} {_number(value)}")

    def text(self) -> bytes:
        """Return the whole document."""
        return "".join(["\n".join(lines) + "\n" for lines in self._lines.values()]).encode()


def _daemon(families: _Families, services: Services) -> None:
    """Add what concerns the whole daemon."""
    stats, pairs, one = services.store.stats(), services.views.pairs, families.one
    one("spl_build_info", "The version that runs.", 1, version=VERSION)
    one("spl_start_timestamp_seconds", "When the daemon started.", services.started_ms / 1000)
    phases = Counter(pair.phase for pair in pairs.values())
    for phase in Phase:
        one("spl_pairs", "Pairs by state.", phases[phase], state=phase.value)
    queues = (services.ingest.reaches.queue_records(pair_id) for pair_id, pair in pairs.items() if pair.live)
    one("spl_reconcile_queue", "Records of all peers between network and store.", sum(queues))
    one("spl_store_records", "Records in threads of users.", records_kept(services))
    one("spl_store_bytes", "Bytes of the log.", stats.log_bytes)
    one("spl_store_free_bytes", "Bytes free on the disk of the log.", stats.free_bytes)
    one("spl_store_writable", "1 while records are taken.", not (stats.readonly or stats.full))
    syncs = families.family("spl_store_fsync_seconds", "Disk syncs of the log.", "histogram")
    times = services.store.sync_times
    form = _histogram_form("spl_store_fsync_seconds", times.bounds_ms)
    syncs.append(_histogram(form, times, range(len(times.bounds_ms))))
    for name, cost_us in services.writer.listeners.p99_us().items():
        cost_s = None if cost_us is None else cost_us / 1e6
        one("spl_adapter_seconds", "What an adapter takes of a record: p99 of the last 5 min.", cost_s, adapter=name)
    one("spl_sse_subscribers", "Open event streams, of peers and of clients.", services.feed.notifier.streams)
    late_s = services.health.loop_lag_ms / 1000
    one("spl_loop_lag_seconds", "How late the event loop ran within the last minute.", late_s)
    one("process_resident_memory_bytes", "Resident memory.", _resident_bytes())
    one("process_open_fds", "Open file descriptors.", _open_fds())


def _sinks(families: _Families, services: Services) -> None:
    """Add what concerns single sinks, of which there are a few; a daemon without one shows no family of them."""
    engines, pairs, one = services.engines, services.views.pairs, families.one
    for sink in engines.all():
        name, state = sink.name, engines.sinks.state(sink)
        one("spl_sink_open", "1 while the sink's way is open.", state.is_open, sink=name)
        lag = engines.sinks.lag_records(sink)
        one("spl_sink_lag_records", "Records that wait for the sink.", lag, sink=name)
        acked_s = state.confirmed_ms / 1000 if state.confirmed_ms is not None else None
        one("spl_sink_last_acked_timestamp_seconds", "When records were last confirmed.", acked_s, sink=name)
    for pair_id in [pair_id for pair_id, pair in pairs.items() if pair.mode == ENGINE] if engines.carrying else ():
        carrier = engines.carriers.state(pair_id)
        one("spl_carrier_open", "1 while the pair is read from its engine.", carrier.is_open, pair=pair_id)
        text = "Records that came by the engine since the carrier began."
        one("spl_carrier_records", text, carrier.received, pair=pair_id)


class _Pairs:
    """Adds what concerns single pairs; what is the same of each is made once, as there may be a thousand pairs."""

    def __init__(self, families: _Families, services: Services) -> None:
        family = families.family
        self._feed = services.feed
        self._info = family("spl_pair_info", "Who the pair is with, in the peer's own words; 1.")
        self._state = family("spl_pair_state", "1 for the state that the pair is in, 0 for the others.")
        self._gauges = [(family(row.name, row.help).append, row.name, row.value) for row in PER_PAIR]
        moved = "Records that crossed the pair and are confirmed; NaN before the peer's first word to this process."
        self._moved = family("spl_pair_records_total", moved, "counter")
        lags = "From a write here to the peer's confirmation, by our clock; only while the peer reads live."
        self._lags = family("spl_pair_lag_seconds", lags, "histogram")
        bounds_ms = [LAG_BOUNDS_MS[each] for each in LAG_BUCKETS]
        self._lag_form = _histogram_form("spl_pair_lag_seconds", bounds_ms, _PAIR)

    def add(self, view: PairOverview) -> None:
        """Add a pair that has not ended."""
        pair, of = view.pair, f'pair="{view.pair.pair_id}"'
        label = label_of(pair.peer_did)
        who = f'peer_did="{PREFIX}{label}",label="{label}"'  # of letters, digits and hyphens, as any DID
        self._info.append(f'spl_pair_info{{{of},{who},mode="{_escaped(pair.mode)}"}} 1')
        self._state.append(_STATES[pair.phase].replace(_PAIR, of))
        for add, name, value in self._gauges:
            add(f"{name}{{{of}}} {_number(value(view))}")
        came, went = view.reading.clock, view.offered.acked
        self._moved.append(
            f'spl_pair_records_total{{{of},direction="in"}} {_number(came)}\n'
            f'spl_pair_records_total{{{of},direction="out"}} {_number(went)}'
        )
        lags = _histogram(self._lag_form, self._feed.lags.histogram(pair.pair_id), LAG_BUCKETS)
        self._lags.append(lags.replace(_PAIR, of))


_PAIR: Final = "PAIR"
"""Stands for the label of a pair in lines that are made once."""
_STATES: Final = {
    now: "\n".join(f'spl_pair_state{{{_PAIR},state="{phase.value}"}} {int(phase is now)}' for phase in Phase)
    for now in Phase
}
"""The lines on the state of a pair, by its state."""


def _histogram_form(name: str, bounds_ms: Sequence[float], of: str = "") -> str:
    """Return the samples of a histogram of times, in seconds, without their numbers; `of` is what it is of."""
    head, inside = (f"{{{of},", f"{{{of}}}") if of else ("{", "")
    bounds = [*(f"{bound / 1000:g}" for bound in bounds_ms), "+Inf"]
    lines = [f'{name}_bucket{head}le="{bound}"}} %d' for bound in bounds]
    return "\n".join([*lines, f"{name}_sum{inside} %s", f"{name}_count{inside} %d"])


def _histogram(form: str, found: Histogram, buckets: Sequence[int]) -> str:
    """Return the samples with the numbers of these buckets."""
    counts = found.at_most
    return form % (*[counts[each] for each in buckets], counts[-1], _number(found.sum_ms / 1000), counts[-1])


def _errors(families: _Families, services: Services) -> None:
    """Add the failures of the pairs that have not ended, by code."""
    text, pairs = "Failed exchanges with the peer since the start, by code.", services.views.pairs
    lines = families.family("spl_pair_errors_total", text, "counter")
    for (pair_id, code), count in services.ingest.lines.warnings.copy().items():
        if pair_id in pairs and not pairs[pair_id].ended:
            lines.append(f"spl_pair_errors_total{{{_labels(pair=pair_id, code=code)}}} {count}")


def _findings(families: _Families, found: Mapping[tuple[str, str], int]) -> None:
    """Add how often each finding of the catalogue holds, 0 included, in each severity that it can have."""
    known = dict.fromkeys((row.code, severity) for row in CATALOGUE for severity in (row.severity, FAIL))
    for code, severity in {**known, **dict.fromkeys(found)}:
        text, count = "How often a finding holds; `spl help CODE` explains it.", found.get((code, severity), 0)
        families.one("spl_findings", text, count, code=code, severity=severity)


def _labels(**labels: str) -> str:
    """Return labels as they stand between the braces."""
    return ",".join([f'{name}="{_escaped(value)}"' for name, value in labels.items()])


def _escaped(text: str) -> str:
    r"""Return a label's value, in which a backslash, a quote and an end of line would end it."""
    cut = printable(text[:TEXT_CHARS_MAX])
    return cut.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float | None) -> str:
    if value is None:
        return "NaN"
    return repr(value) if isinstance(value, float) else str(int(value))


def _resident_bytes() -> float:
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError, ValueError):  # not Linux
        return nan


def _open_fds() -> float:
    try:
        return len(os.listdir("/proc/self/fd")) - 1  # without the one that lists them
    except OSError:
        return nan
