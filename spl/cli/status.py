"""`spl status` and `spl health`."""

from argparse import Namespace
from collections.abc import Iterator, Mapping
from typing import Any, Final

from ..core.errors import count, steps
from ..core.when import ms_of, span, span_fine
from .client import CtlError
from .command import FOUND_PROBLEMS, Command, Shell, arg
from .fit import size
from .out import Out
from .pair_page import FRESH_MS

_COUNTED_STATES: Final = ("active", "paused", "degraded", "establishing", "revoked")
_POLLS_SHOWN: Final = 3
_NOT_READY: Final = frozenset(
    {"warming-up", "overloaded", "shutting-down", "task-dead", "store-readonly", "store-full"}
)
_HEAD_CHARS: Final = 8  # the left column


def _status(args: Namespace, shell: Shell) -> int:
    if args.all:
        return int(shell.load("cli.contexts").fleet(args, shell))
    status = shell.ctl.get("/v1/status")
    if shell.context is not None:
        status["context"] = shell.context.name
    if not shell.printed("spl.status/1", status):
        for line in _lines(status, shell.out):
            shell.out.entry(line[:_HEAD_CHARS], line[_HEAD_CHARS:])
        _attention(status["attention"], shell)
    return FOUND_PROBLEMS if args.check and status["attention"] else 0


def _lines(status: Mapping[str, Any], out: Out) -> Iterator[str]:
    """Yield the lines of the report, without those that this daemon does not measure."""
    identity, store, pairs = status["identity"], status["store"], status["pairs"]
    name, did = (identity["label"], identity["did"]) if identity else ("-", "no identity")
    yield f"{name:<8}{did}   spl {status['version']}, up {span_fine(status['uptime_s'] * 1000)}, {status['url']}"
    parts = [f"{count(store['records'], 'record')}, {size(store['bytes'])}"]
    if store.get("fsync_ms") is not None:
        parts.append(f"last fsync {store['fsync_ms']:.0f} ms")
    if store.get("free_bytes") is not None:
        parts.append(f"{size(store['free_bytes'])} free")
    if status.get("context"):
        yield f"context {status['context']}"
    yield f"store   {', '.join(parts)}"
    counts = [f"{pairs[state]} {state}" for state in _COUNTED_STATES if pairs.get(state)]
    yield f"pairs   {pairs['total']}" + (f": {', '.join(counts)}" if counts else "")
    yield from _lag(status.get("lag") or {}, out)
    queue = status.get("queue") or {}
    if queue.get("now") is not None:
        most = f", max {queue['max']} in the last hour" if queue.get("max") is not None else ""
        yield f"queue   {queue['now']} now{most}"
    if sinks := status.get("sinks"):
        yield f"sinks   {sinks['total']}: {sinks['open']} open, {sinks['lag_records']:,} wait"
    adapters = status.get("adapters") or {}
    if adapters.get("p99_ms") is not None:
        yield f"adapters {adapters['count']}, p99 {adapters['p99_ms']:,.1f} ms per record"


def _lag(lag: Mapping[str, Any], out: Out) -> Iterator[str]:
    parts = []
    if lag.get("p50_ms") is not None:
        parts.append(f"p50 {lag['p50_ms']:,.0f} ms, p99 {lag['p99_ms']:,.0f} ms (last 5 min)")
    polls = [span_fine(each) for each in lag.get("polls_ms") or []]
    if polls:
        more = " and more" if polls[_POLLS_SHOWN:] else ""
        parts.append(f"polling every {', '.join(polls[:_POLLS_SHOWN])}{more}")
    if lag.get("worst_pair_id") and lag.get("lag_records"):
        parts.append(f"worst {lag['worst_pair_id']}, {count(lag['lag_records'], 'record')}")
    confirmed_at = lag.get("oldest_confirmed_at")
    if confirmed_at and abs(out.now_ms() - ms_of(confirmed_at)) > FRESH_MS:
        parts.append(f"{lag['oldest_pair_id']} was confirmed last {out.ago(confirmed_at)}")
    if parts:
        yield f"lag     {'; '.join(parts)}"


def _attention(findings: list[dict[str, Any]], shell: Shell) -> None:
    if not findings:
        return
    shell.out.line()
    shell.out.line(f"needs attention ({len(findings)})")
    width = max(len(finding["code"]) for finding in findings)
    for finding in findings:
        mark = "✗" if finding["severity"] == "fail" else "!"
        pair = f"{finding['pair_id']}: " if finding.get("pair_id") else ""
        shell.out.entry(f"  {mark} {finding['code']:<{width}}  ", f"{pair}{finding['title']}")
        if finding.get("fix"):
            shell.out.entry(f"    {'':<{width}}  ", *steps(str(finding["fix"])))


def _health(args: Namespace, shell: Shell) -> int:
    health = shell.ctl.get("/health")
    missing = ""
    try:
        shell.ctl.get("/health/ready")
    except CtlError as exc:
        if exc.code not in _NOT_READY:
            raise
        missing = exc.message
    if not shell.printed("spl.health/1", {**health, "ready": not missing}):
        word = f"not ready: {missing}" if missing else health["status"]
        # The daemon gives its process id to its own operator only.
        pid = f", pid {health['pid']}" if "pid" in health else ""
        shell.out.line(f"{word}  spl {health['version']}, up {span(health['uptime_s'] * 1000)}{pid}")
    return FOUND_PROBLEMS if missing else 0


TREE: Final = (
    Command(
        "status",
        "Prints one page about the daemon: identity, store, pairs, lag, and each problem with its next step.\n"
        "lag is the time from a write here to a peer's confirmation, and of polling pairs how often they poll;\n"
        "queue counts records between network and store, adapters what listens to each write. A manifest and a token\n"
        "that will expire renew by themselves: what needs you stands under `needs attention`.\n"
        "It exits 0 if it could report, and 5 if no daemon answers; with --check, problems make it exit 3.\n"
        "--all asks every context at once and has a row for each, also for one that does not answer within 5 s; it\n"
        "exits 3 unless all answered.",
        "spl status --check",
        _status,
        (
            arg("--check", action="store_true", help="exit 3 if something needs attention"),
            arg("--all", action="store_true", help="one row for each daemon of `spl context ls`"),
        ),
    ),
    Command(
        "health",
        "Asks the daemon for a sign of life, as a supervisor would.\n"
        "It exits 0 if the daemon is ready, 3 if it is alive but not ready, and 5 if no daemon answers.",
        "spl health",
        _health,
    ),
)
