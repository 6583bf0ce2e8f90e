"""`spl federation verify`: compare what both sides of a pair hold, and repair the difference."""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ..client.calls import quote
from ..core.errors import count
from .client import LONG_S
from .command import FOUND_PROBLEMS, PAIR, Command, Shell, arg
from .out import Out, label_of
from .pair import PAIRS

SHOWN_IDS: Final = 20
"""The number of differing ids that people see; `-o json` has up to 10,000."""


def _verify(args: Namespace, shell: Shell) -> int:
    body = {name: True for name in ("repair", "accept_retired") if getattr(args, name)}
    report = shell.ctl.post(f"{PAIRS}/{quote(args.pair)}/verify", body, LONG_S)
    if not shell.printed("spl.verify/1", report):
        _show(report, shell.out)
    return 0 if report["equal"] else FOUND_PROBLEMS


def _show(report: Mapping[str, Any], out: Out) -> None:
    peer, rows = label_of(report["peer_did"]), report["namespaces"]
    titles = ("NAMESPACE", "HERE", "THERE", "MISSING HERE", "MISSING THERE")
    fields = ("here_records", "there_records", "missing_here", "missing_there")
    out.table(titles, [[row["namespace"], *(f"{row[name]:,}" for name in fields)] for row in rows])
    if report["repaired"]:
        fetched, pushed = report["repaired"]["fetched_records"], report["repaired"]["pushed_records"]
        out.line(f"repaired: {count(fetched, 'record')} fetched, {pushed:,} sent to {peer}")
    _ids(report["missing_here"], f"missing here, offered by {peer}", out)
    _ids(report["missing_there"], f"missing at {peer}, offered here", out)
    if report["nameless_here"]:
        out.line(f"missing here: {count(report['nameless_here'], 'projection')} without an id")
    if report["equal"]:
        out.line(f"{report['pair_id']}  equal: each side holds everything that the other offers")
    else:
        out.line(
            f"{report['pair_id']}  the sides DIFFER" + ("" if report["complete"] else ", in more records than listed")
        )
    size = (report["sent_bytes"] + report["received_bytes"]) / 1024
    asked = count(report["questions"], "question")
    out.note(f"{asked}, {size:.1f} KiB, {report['ms'] / 1000:.1f} s; compared as of {report['as_of']}")
    if report["beyond_offer"]:
        beyond = f"{count(report['beyond_offer'], 'record')} outside what this pair shares now"
        out.note(f"{beyond} (withdrawn, or from before the pair): not compared")
    if any(item.get("refused") == "key-retired" for item in report["missing_here"]):
        out.hint(
            f"if this home lost what a retired key of its own signed, and you trust {peer}: "
            f"spl federation verify {report['pair_id']} --accept-retired"
        )
    if not report["equal"] and not report["repaired"]:
        out.hint(f"records that are not synced yet count as missing; to fetch and send them: {_fix(report)}")


def _ids(items: Sequence[Mapping[str, Any]], title: str, out: Out) -> None:
    """List the first differing ids, each with its namespace and why it was refused here, if it was."""
    if not items:
        return
    out.line(f"{title}:")
    for item in items[:SHOWN_IDS]:
        why = f"  refused: {item['refused']}" if "refused" in item else ""
        out.line(f"  {item['id']}  {item['namespace']}{why}")
    if len(items) > SHOWN_IDS:
        out.line(f"  and {len(items) - SHOWN_IDS:,} more; -o json has them")


def _fix(report: Mapping[str, Any]) -> str:
    return f"spl federation verify {report['pair_id']} --repair"


COMMAND: Final = Command(
    "federation verify",
    "Compares what both sides hold of what the pair shares: exits 0 if it is equal, else 3 with what each side lacks.\n"
    "The cost depends on the difference, not on how much is shared; --repair fetches and sends what is missing.\n"
    "HERE and THERE count all that each side holds in a namespace of the pair, also what it does not offer; MISSING\n"
    "counts what one side offers and the other lacks, and decides.",
    "spl federation verify bob --repair",
    _verify,
    (
        PAIR,
        arg("--repair", action="store_true", help="fetch what is missing here, send what is missing there"),
        arg(
            "--accept-retired",
            action="store_true",
            help="as --repair, and take what your own earlier keys signed; only from a peer that you trust",
        ),
    ),
)
