"""`spl consent` and the grants of `spl federation`: what is shared across namespaces, with whom, at which level."""

from argparse import Namespace
from collections.abc import Iterator, Mapping
from typing import Any, Final

from .client import elements, quote
from .command import Command, Group, Parser, Shell, UsageError
from .out import label_of
from .pair import PAIRS

NONE: Final = "none"


def line(item: Mapping[str, Any], peer: str) -> str:
    """Return a grant on one line, with what it lacks; `peer` is what people call the other side."""
    lacks = _lacks(item, peer)
    return f"{_crossing(item)} ({_level(item)})" + (f"; {lacks}" if lacks else "")


def _grant(args: Namespace, shell: Shell) -> int:
    body = {"namespace": args.namespace}
    if args.maps:
        body["maps"] = _maps(args.namespace, args.maps)
    if args.hash_level:
        body["level"] = args.hash_level
    found = shell.ctl.post(f"{PAIRS}/{quote(args.pair)}/grants", body)
    if not shell.printed("spl.grant/1", found):
        word = "already granted" if found["already"] else "granted"
        shell.out.line(f"{found['pair_id']}  {word}: {_crossing(found)} ({_level(found)})")
        _explain(found, shell)
    return 0


def _explain(found: Mapping[str, Any], shell: Shell) -> None:
    """Say what the grant means, and who must do what for its full effect."""
    out, peer = shell.out, label_of(found["peer_did"])
    if found["granted"] == "L0":
        theirs = found["peer_namespace"]
        out.note(f"where {peer} is a hub, {found['namespace']} goes to all with whom it shares {theirs}")
    if found["level"] == "L1" or found["granted"] == "L1":
        out.note("at L1 ids and hashes travel instead of bodies; a short body can be guessed from its id")
    if found["agreed"] and found["granted"] != "L0":
        out.note(f"{found['namespace']} was shared in full; restore that with: --hash-level L0")
    out.note("revoking a grant stops what would come, and does not recall what was delivered")
    if found["unheard"]:
        out.warn(f"! {peer} could not be told yet ({found['unheard']}); it is told as soon as it is in touch")
    elif found["missing"]:
        out.warn(f"! {found['missing']}")
    if found["fix"]:
        out.warn(f"  fix       {_fix(found, peer)}")


def _revoke(args: Namespace, shell: Shell) -> int:
    found = shell.ctl.post(f"{PAIRS}/{quote(args.pair)}/revoke-grant", {"namespace": args.namespace})
    if not shell.printed("spl.grant/1", found):
        word = "already withdrawn" if found["already"] else "withdrawn"
        shell.out.line(f"{found['pair_id']}  {word}: {found['namespace']}")
        shell.out.note("nothing more of it is sent; what was delivered stays where it is")
        if found["unheard"]:
            peer = label_of(found["peer_did"])
            shell.out.note(f"{peer} could not be told yet ({found['unheard']}), which changes nothing of that")
    return 0


def _list(args: Namespace, shell: Shell) -> int:
    query = f"?pair={quote(args.pair)}" if args.pair else ""
    grants = shell.ctl.items(f"/v1/consent/grants{query}")
    if shell.printed("spl.grants/1", grants):
        return 0
    names = shell.out.dids(item["peer_did"] for item in grants)
    rows = [
        (
            str(item["pair_id"]), names[item["peer_did"]], _crossing(item), _level(item),
            str(item["version"] or "-"), _lacks(item, label_of(item["peer_did"])) or "-",
        )
        for item in grants
    ]  # fmt: skip
    shell.out.table(("PAIR ID", "PEER DID", "NAMESPACES", "LEVEL", "VERSION", "MISSING"), rows)
    if not grants:
        shell.out.hint("nothing is shared: there is no pair; make one with: spl federation pair URL")
    return 0


def _crossing(item: Mapping[str, Any]) -> str:
    """Return what goes where: ours with its two names, the peer's into ours."""
    return f"{item['namespace']} {'->' if item['direction'] == 'out' else '<-'} {', '.join(item['maps'])}"


def _level(item: Mapping[str, Any]) -> str:
    """Return the level that holds, with the one that was granted where they differ."""
    granted, level = item["granted"], item["level"]
    if granted == NONE:
        return "withdrawn"
    return str(granted) if granted == level or item["missing"] else f"{granted}, at present {level}"


def _lacks(item: Mapping[str, Any], peer: str) -> str:
    return f"{item['missing']}: {_fix(item, peer)}" if item["missing"] else ""


def _fix(item: Mapping[str, Any], peer: str) -> str:
    return f"on {peer}: {item['fix']}" if item["at_peer"] else str(item["fix"])


def _maps(name: str, text: str) -> str:
    """Return the peer's name in "local,peer"."""
    local, comma, peer = text.partition(",")
    if not (local and comma and peer) or "," in peer:
        raise UsageError("usage", f"--maps {text!r} is not LOCAL,PEER")
    if local != name:
        raise UsageError("usage", f"--maps begins with the namespace that is granted: {name},{peer}")
    return peer


def _grant_options(parser: Parser) -> None:
    _pair_option(parser)
    parser.add_argument("--namespace", required=True, metavar="N", help="our namespace that is shared")
    parser.add_argument("--maps", metavar="N,PEER_N", help="the peer's name for it, after ours; default: the same name")
    parser.add_argument(
        "--hash-level", metavar="LEVEL", choices=("L0", "L1", "L2", "L3"),
        help="L0 exact, L1 structural, L2 flow, L3 shapes; default L1, and L0 where a namespace joins under its name",
    )  # fmt: skip


def _revoke_options(parser: Parser) -> None:
    _pair_option(parser)
    parser.add_argument("--namespace", required=True, metavar="N", help="our namespace that was shared")


def _list_options(parser: Parser) -> None:
    parser.add_argument("pair", nargs="?", metavar="PAIR", help="one pair; every pair without")


def _pair_option(parser: Parser) -> None:
    parser.add_argument("pair", metavar="PAIR", help="pair id, a unique prefix of one, or the peer's DID")


COMMANDS: Final = (
    Command(
        "federation grant",
        "Shares one of our namespaces across the pair, into the namespace that --maps names at the peer.\n"
        "At L1 to L3 hashes travel in place of bodies, by our word alone; L0, the records themselves, takes the same\n"
        "grant of both sides, and behaves as L1 until then.  For a namespace that the pair shares under its own name\n"
        "a grant only lowers the level, and L0 restores it.",
        "spl federation grant did:sync:instance:bob --namespace music --maps music,projects/music --hash-level L1",
        _grant,
        _grant_options,
    ),
    Command(
        "federation revoke-grant",
        "Stops sending a namespace across the pair at once, on open streams too.\n"
        "What was delivered is not recalled, and what the peer grants us goes on.",
        "spl federation revoke-grant did:sync:instance:bob --namespace music",
        _revoke,
        _revoke_options,
    ),
)
"""Commands of `spl federation`."""

TREE: Final = (
    Group(
        "consent",
        "Consent says which namespace crosses a pair, into which one, and at which hash level.\n"
        "It is given with `spl federation grant` and taken back with `spl federation revoke-grant`.",
        "spl consent list",
        (
            Command(
                "consent list",
                "Lists what both sides of each pair grant, with level, version, and what is missing for the full\n"
                "effect; version - is what the handshake agreed.",
                "spl consent list",
                _list,
                _list_options,
            ),
        ),
    ),
)


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
