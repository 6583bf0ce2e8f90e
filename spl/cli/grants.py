"""Consent: the grants of a pair, what crosses it at which level, and the projections that came below full level.

The commands are `spl consent list` and, of `spl federation`, `grant`, `revoke-grant` and `projections`.
"""

from argparse import Namespace
from collections.abc import Iterator, Mapping
from typing import Any, Final

from ..client.calls import elements, later, quote
from .client import LIST_BYTES
from .command import PAIR, SINCE, Command, Group, Shell, UsageError, arg, limit
from .out import RECORD_CHARS, label_of
from .pair import PAIRS

NONE: Final = "none"
SHOWN: Final = 1000

_PAGE: Final = 500


def line(item: Mapping[str, Any], peer: str) -> str:
    """Return a grant on one line, with what is missing for its effect; `peer` names the other side to people."""
    lacks = _lacks(item, peer)
    return f"{_crossing(item, peer)} ({_level(item)})" + (f"; {lacks}" if lacks else "")


def _grant(args: Namespace, shell: Shell) -> int:
    body = {"namespace": args.namespace}
    if args.maps:
        body["maps"] = _maps(args.namespace, args.maps)
    if args.hash_level:
        body["level"] = args.hash_level
    found = shell.ctl.post(f"{PAIRS}/{quote(args.pair)}/grants", body)
    if not shell.printed("spl.grant/1", found):
        word = "already granted" if found["already"] else "granted"
        shell.out.line(f"{found['pair_id']}  {word}: {_crossing(found, label_of(found['peer_did']))} ({_level(found)})")
        _explain(found, shell)
    return 0


def _explain(found: Mapping[str, Any], shell: Shell) -> None:
    """Print what the grant means, and what each side must do for its full effect."""
    out, peer = shell.out, label_of(found["peer_did"])
    if found["granted"] == "L0":
        theirs = found["peer_namespace"]
        out.note(f"if {peer} is a hub, {found['namespace']} goes to all instances with which it shares {theirs}")
    if found["level"] == "L1" or found["granted"] == "L1":
        out.note("at L1 ids and hashes travel instead of bodies; a short body can be guessed from its id")
    if found["agreed"] and found["granted"] != "L0":
        out.note(f"{found['namespace']} was shared in full; --hash-level L0 restores that")
    out.note("revoking a grant stops what would follow, and does not recall what was delivered")
    if found["unheard"]:
        out.warn(f"! {peer} has not received the grant yet ({found['unheard']}); it will be sent on next contact")
    elif found["missing"]:
        out.warn(f"! {found['missing']}")
    if found["fix"]:
        out.warn(f"  fix       {_fix(found, peer)}")


def _revoke(args: Namespace, shell: Shell) -> int:
    found = shell.ctl.post(f"{PAIRS}/{quote(args.pair)}/revoke-grant", {"namespace": args.namespace})
    if not shell.printed("spl.grant/1", found):
        word = "already withdrawn" if found["already"] else "withdrawn"
        shell.out.line(f"{found['pair_id']}  {word}: {found['namespace']}")
        shell.out.note("nothing more of it is sent; what was delivered stays with the peer")
        if found["unheard"]:
            peer = label_of(found["peer_did"])
            shell.out.note(f"{peer} has not been told yet ({found['unheard']}); this does not affect the revocation")
    return 0


def _list(args: Namespace, shell: Shell) -> int:
    query = f"?pair={quote(args.pair)}" if args.pair else ""
    grants = shell.ctl.items(f"/v1/consent/grants{query}")
    if shell.printed("spl.grants/1", grants):
        return 0
    sinks = [item for item in grants if item["pair_id"] is None]
    grants = [item for item in grants if item["pair_id"] is not None]
    names = shell.out.dids(item["peer_did"] for item in grants)
    rows = [
        (
            str(item["pair_id"]), names[item["peer_did"]], _crossing(item, label_of(item["peer_did"])), _level(item),
            str(item["version"] or "-"), shell.out.pasted(_lacks(item, label_of(item["peer_did"]))) or "-",
        )
        for item in grants
    ]  # fmt: skip
    rows += [
        (f"sink {item['sink']}", "every reader", f"{item['namespace']} -> its readers", _level(item), "-", "-")
        for item in sinks
    ]
    shell.out.table(
        ("PAIR ID", "PEER DID", "NAMESPACES", "LEVEL", "VERSION", "MISSING"),
        rows,
        keep=("PAIR ID", "NAMESPACES", "LEVEL", "MISSING"),
        none=f"nothing is shared with {args.pair}: spl federation grant {args.pair} --namespace NAME"
        if args.pair
        else "nothing is shared, because there are no pairs yet: spl federation pair URL",
    )
    return 0


def _crossing(item: Mapping[str, Any], peer: str) -> str:
    """Return which namespace crosses, ours first in either direction, and its name at the peer if it is another."""
    source, target = item["maps"]
    ours, theirs = (source, target) if item["direction"] == "out" else (target, source)
    arrow = "->" if item["direction"] == "out" else "<-"
    return f"{ours} {arrow} {peer}" if ours == theirs else f"{ours} {arrow} {peer}:{theirs}"


def _level(item: Mapping[str, Any]) -> str:
    """Return the effective level, with the granted one if they differ."""
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
        raise UsageError("usage", f"--maps begins with the namespace that --namespace names: {name},{peer}")
    return peer


def _projections(args: Namespace, shell: Shell) -> int:
    claims = list(_walk(args, shell))
    out = shell.out
    if not shell.printed("spl.projections/1", claims):
        rows = [
            (
                str(claim["sequence"]), f"claimed by {label_of(claim['claimed_by'])}", claim["level"],
                claim["namespace"], claim["thread"], claim.get("act", "-"), claim.get("actor", "-"),
                claim["id"] if out.wide else claim["id"][:RECORD_CHARS],
            )
            for claim in claims
        ]  # fmt: skip
        none = f"no projections; the grants and their levels: spl consent list {args.pair}"
        out.table(("SEQ", "SOURCE", "LEVEL", "NAMESPACE", "THREAD", "ACT", "ACTOR", "ID"), rows, none=none)
    if len(claims) == args.limit:
        out.note(f"continue with: spl federation projections {args.pair} --since {claims[-1]['sequence']}")
    return 0


def _walk(args: Namespace, shell: Shell) -> Iterator[dict[str, Any]]:
    """Yield the projections asked for, page by page."""
    after, left = args.since, args.limit
    while left > 0:
        query = [("after", str(after)), ("limit", str(min(left, _PAGE)))]
        query += [("namespace", args.namespace)] if args.namespace else []
        answer = shell.ctl.get(f"{PAIRS}/{quote(args.pair)}/projections", query)
        page = elements(answer)
        yield from page
        left -= len(page)
        shell.ctl.check_taken(LIST_BYTES)
        if answer.get("next_after") is None:
            return
        after = later(answer["next_after"], after)


COMMANDS: Final = (
    Command(
        "federation grant",
        "Shares one of our namespaces across the pair, into the namespace that --maps names at the peer.\n"
        "At L1 to L3 hashes travel instead of bodies, and our grant alone suffices. L0, the records themselves, takes\n"
        "the same grant of both sides, and behaves as L1 until then. For a namespace that the pair shares under its\n"
        "own name, a grant only lowers the level, and L0 restores it.",
        "spl federation grant did:sync:instance:bob --namespace music --maps music,projects/music --hash-level L1",
        _grant,
        (
            PAIR,
            arg("--namespace", required=True, metavar="N", help="our namespace to share"),
            arg("--maps", metavar="N,PEER_N", help="our name and the peer's name for it (default: the same name)"),
            arg("--hash-level", metavar="LEVEL", choices=("L0", "L1", "L2", "L3"),
                help="what the peer sees: L0 the records, L1 to L3 ever less of them, as `spl help consent` says "
                     "(default: L1; L0 if both names are the same)"),
        ),
    ),
    Command(
        "federation revoke-grant",
        "Stops sending a namespace across the pair at once, on open streams too.\n"
        "What was delivered is not recalled, and what the peer grants us continues.",
        "spl federation revoke-grant bob --namespace music",
        _revoke,
        (PAIR, arg("--namespace", required=True, metavar="N", help="our namespace to withdraw")),
    ),
    Command(
        "federation projections",
        "Lists what the peer shows of records that it does not share in full: hashes, and what the level keeps.\n"
        "A projection is a claim of the peer and not a record: it is neither counted nor relayed, and it is removed\n"
        "once the record itself, or a finer level of it, has arrived.",
        "spl federation projections bob --namespace projects/music",
        _projections,
        (
            PAIR,
            arg("--namespace", metavar="N", help="only those in this namespace of ours"),
            SINCE,
            limit(SHOWN),
        ),
    ),
)  # fmt: skip
"""Commands of `spl federation`."""

TREE: Final = (
    Group(
        "consent",
        "Consent states which namespace crosses a pair, into which one, and at which hash level.\n"
        "`spl federation grant` gives it and `spl federation revoke-grant` withdraws it.",
        "spl consent list",
        (
            Command(
                "consent list",
                "Lists the grants of both sides of each pair, with level, version, and what is missing for the full\n"
                "effect; version - is what the handshake agreed.",
                "spl consent list",
                _list,
                (arg("pair", nargs="?", metavar="PAIR", help="one pair (default: every pair)"),),
            ),
        ),
    ),
)
