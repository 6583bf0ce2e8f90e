"""`spl federation projections`: what a peer claims of records that it does not share in full."""

from argparse import Namespace
from collections.abc import Iterator
from typing import Any, Final

from .command import Command, Parser, Shell, UsageError
from .ctl import elements, quote
from .handshake import PAIRS
from .out import label_of

SHOWN: Final = 1000
_PAGE: Final = 500
_ID_CHARS: Final = 12


def _options(parser: Parser) -> None:
    parser.add_argument("pair", metavar="PAIR", help="a pair id, a unique prefix of one, or the peer's DID")
    parser.add_argument("--namespace", metavar="N", help="only those that came into this namespace of ours")
    parser.add_argument("--since", type=int, default=0, metavar="SEQ", help="only those after this sequence number")
    parser.add_argument("--limit", type=int, default=SHOWN, metavar="N", help=f"at most so many (default {SHOWN})")


def _projections(args: Namespace, shell: Shell) -> int:
    if args.limit < 1 or args.since < 0:
        raise UsageError("usage", "--limit is at least 1, --since at least 0")
    claims = list(_walk(args, shell))
    out = shell.out
    if not shell.printed("spl.projections/1", claims):
        rows = [
            (
                str(claim["sequence"]), f"claimed by {label_of(claim['claimed_by'])}", claim["level"],
                claim["namespace"], claim["thread"], claim.get("act", "-"), claim.get("actor", "-"),
                claim["id"] if out.wide else claim["id"][:_ID_CHARS],
            )
            for claim in claims
        ]  # fmt: skip
        out.table(("SEQ", "SOURCE", "LEVEL", "NAMESPACE", "THREAD", "ACT", "ACTOR", "ID"), rows)
        if not claims:
            out.hint(f"no projections; what is granted, by whom and at which level: spl consent list {args.pair}")
    if len(claims) == args.limit:
        out.note(f"go on with: spl federation projections {args.pair} --since {claims[-1]['sequence']}")
    return 0


def _walk(args: Namespace, shell: Shell) -> Iterator[dict[str, Any]]:
    """Yield the claims asked for, page by page."""
    after, left = args.since, args.limit
    while left > 0:
        query = [("after", str(after)), ("limit", str(min(left, _PAGE)))]
        query += [("namespace", args.namespace)] if args.namespace else []
        answer = shell.ctl.get(f"{PAIRS}/{quote(args.pair)}/projections", query)
        page = elements(answer)
        yield from page
        left -= len(page)
        if answer.get("next_after") is None:
            return
        after = answer["next_after"]


COMMAND: Final = Command(
    "federation projections",
    "Lists what the peer shows of records that it does not share in full: hashes, and what the grant's level keeps.\n"
    "Each is a claim of the peer and no record of ours: it counts nowhere and is passed on to nobody,\n"
    "and it is gone from here as soon as the record itself, or a finer level of it, has arrived.",
    "spl federation projections pair_a1b2c3d4 --namespace projects/music",
    _projections,
    _options,
)
