"""`spl sync`: fetch now what peers share."""

from argparse import Namespace
from collections.abc import Mapping
from typing import Any, Final

from ..client.calls import elements, quote
from ..client.errors import refusal
from ..core.errors import count
from .client import LONG_S
from .command import Command, Shell, UsageError, arg
from .out import label_of


def _sync(args: Namespace, shell: Shell) -> int:
    what: list[str] = args.what
    if not what:
        return _all(shell)
    if len(what) == 1:
        thread, pair = "", what[0]
    elif len(what) == 3 and what[1] == "from":
        thread, pair = what[0], what[2]
    else:
        raise UsageError("usage", "write `spl sync [PAIR]` or `spl sync THREAD from PAIR`")
    args.pair = pair  # which errors name in their next step
    body = {"thread": thread} if thread else {}
    answer = shell.ctl.post(f"/v1/federation/pairs/{quote(pair)}/sync", body, LONG_S)
    if not shell.printed("spl.sync/1", answer):
        peer = label_of(answer["peer_did"])
        pushed = f", {count(answer['pushed'], 'record')} pushed there" if answer.get("reach") == "we-push" else ""
        shell.out.line(
            f"{answer.get('pair_id', pair)}  {count(answer['records'], 'record')} fetched from {peer}{pushed}"
        )
        waits = (answer.get("outbound") or {}).get("lag_records")
        if waits and not pushed:
            shell.out.note(
                f"{count(waits, 'record')} of ours {'waits' if waits == 1 else 'wait'} for {peer}, which fetches "
                f"by its own mode; at once with, on {peer}: spl sync {answer['pair_id']}"
            )
    return 0


def _all(shell: Shell) -> int:
    """Sync every pair that is neither paused nor revoked; the first error gives the exit code."""
    results = elements(shell.ctl.post("/v1/sync", {}, LONG_S))
    errors = []
    for item in results:
        if item.get("error"):
            failed = refusal(_form(item["error"]))
            failed.facts = {"pair": item["pair_id"], **failed.facts}
            failed.hint = failed.hint.replace("PAIR_ID", item["pair_id"])
            errors.append(failed)
    if not shell.printed("spl.sync/1", results):
        rows = [
            (str(item["pair_id"]), str(item.get("records", 0)), str(_form(item.get("error") or {}).get("code", "-")))
            for item in results
        ]
        shell.out.table(("PAIR ID", "RECORDS", "ERROR"), rows, none="no pair to sync: spl federation pair URL")
    for error in errors:
        shell.out.failure(error)
    return errors[0].exit_code if errors else 0


def _form(error: Any) -> Mapping[str, Any]:
    """Return an error form, made from the code or class if the daemon sent only that."""
    return error if isinstance(error, dict) else {"code": str(error), "message": str(error)}


TREE: Final = (
    Command(
        "sync",
        "Fetches now what peers share, whatever a pair's mode; without a pair, from every pair that is not paused.\n"
        "It continues from the saved position and skips known records, so repeating it is safe.\n"
        "What the peer lacks goes when it fetches, by its own mode, or now if it cannot dial us.",
        "spl sync th_release from bob",
        _sync,
        (
            arg("what", nargs="*", metavar="PAIR | THREAD from PAIR",
                help="one pair, or one thread of it (default: every pair)"),
        ),
    ),
)  # fmt: skip
