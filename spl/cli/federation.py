"""`spl federation`: pairs with other instances."""

from argparse import Namespace
from typing import Any, Final

from ..core.when import duration_ms, span_fine
from . import grants, pair_page, soak, verify
from . import pair as handshake
from .client import quote
from .command import Command, Group, Parser, Shell, UsageError
from .out import label_of, state_paint
from .pair import PAIRS

TOKEN_BYTES_MAX: Final = 4096
FILTERING: Final = frozenset({"relay", "thread-allow", "thread-rule"})
"""Actions that change what is sent."""


def _list(args: Namespace, shell: Shell) -> int:
    pairs = shell.ctl.items(PAIRS)
    if shell.printed("spl.pairs/1", pairs):
        return 0
    out = shell.out
    names = out.dids(pair["peer_did"] for pair in pairs)
    titles = ["PAIR ID", "PEER DID", "STATE", "MODE", "LAST SYNC"]
    rows = [
        [
            pair["pair_id"],
            names[pair["peer_did"]],
            pair_page.state_of(pair),
            pair["mode"],
            out.ago(pair["last_sync_at"]),
        ]
        for pair in pairs
    ]
    if out.wide:
        titles += ["NAMESPACES", "ROLE", "URL"]
        for row, pair in zip(rows, pairs, strict=True):
            row += [",".join(pair["namespaces"]), "initiator" if pair["initiator"] else "responder", pair["url"]]
    out.table(titles, rows, {"STATE": state_paint})
    troubled = [pair["pair_id"] for pair in pairs if pair["state"] == "degraded"]
    if troubled:
        need = "1 pair needs" if len(troubled) == 1 else f"{len(troubled)} pairs need"
        out.hint(f"! {need} attention: spl doctor {troubled[0]}")
    if not pairs:
        out.hint("no pairs yet; make one with: spl federation pair URL")
    return 0


def _show(args: Namespace, shell: Shell) -> int:
    pair = shell.ctl.get(_path(args))
    if not shell.printed("spl.pair/1", pair):
        shell.out.card(pair_page.facts(pair, shell.out))
    return 0


def _pause(args: Namespace, shell: Shell) -> int:
    return _act(args, shell, "pause", {}, "paused")


def _resume(args: Namespace, shell: Shell) -> int:
    return _act(args, shell, "resume", {"resync": True} if args.resync else {}, "resumed")


def _revoke(args: Namespace, shell: Shell) -> int:
    body: dict[str, object] = {"reason": args.reason} if args.reason else {}
    return _act(args, shell, "revoke", {**body, "block": True} if args.block else body, "revoked")


def _refresh(args: Namespace, shell: Shell) -> int:
    return _act(args, shell, "refresh", {"expect_key": args.expect_key} if args.expect_key else {}, "refreshed")


def _set_token(args: Namespace, shell: Shell) -> int:
    text = shell.stdin.read(TOKEN_BYTES_MAX).decode(errors="replace").strip()
    if not text:
        raise UsageError("usage", "no token on stdin", hint=f"spl federation set-token {args.pair} < FILE")
    return _act(args, shell, "set-token", {"token": text}, "token installed")


def _set_mode(args: Namespace, shell: Shell) -> int:
    return _act(args, shell, "mode", {"mode": args.mode}, f"mode {args.mode}")


def _set_poll_interval(args: Namespace, shell: Shell) -> int:
    interval_ms = duration_ms(args.interval)
    return _act(args, shell, "poll-interval", {"interval_ms": interval_ms}, f"poll interval {span_fine(interval_ms)}")


def _set_relay(args: Namespace, shell: Shell) -> int:
    return _act(args, shell, "relay", {"relay": args.relay == "on"}, f"relay {args.relay}")


def _thread_allow(args: Namespace, shell: Shell) -> int:
    if bool(args.thread) is args.clear:
        raise UsageError("usage", "name threads, or --clear alone", hint="spl federation thread-allow --help")
    if args.clear:
        return _act(args, shell, "thread-allow", {"clear": True}, "allows no thread by name")
    body = {"threads": args.thread, "remove": args.remove}
    word = "no longer allows" if args.remove else "allows"
    return _act(args, shell, "thread-allow", body, f"{word} {', '.join(args.thread)}")


def _thread_rule(args: Namespace, shell: Shell) -> int:
    if (args.expression is None) is not args.clear:
        raise UsageError("usage", "give an expression, or --clear alone", hint="spl federation thread-rule --help")
    done = "thread rule cleared" if args.clear else "thread rule set"
    return _act(args, shell, "thread-rule", {"expression": args.expression or ""}, done)


def _act(args: Namespace, shell: Shell, action: str, body: dict[str, object], done: str) -> int:
    """Ask for one action and print `PAIR  done` (`already_done` where nothing changed) and the state."""
    pair = shell.ctl.post(f"{_path(args)}/{action}", body)
    out = shell.out
    if shell.printed("spl.pair/1", pair):
        return 0
    word = f"already_{done}" if pair.get("already") else done
    state = pair_page.state_of(pair)
    out.line(f"{pair['pair_id']}  {word}" + (f", state {state}" if not word.endswith(state) else ""))
    if action == "poll-interval" and pair["mode"] != "polling":
        out.note(f"it applies in mode polling; this pair's mode is {pair['mode']}")
    if action == "resume" and "records" in pair:
        out.line(f"read again from the start: {pair['records']} records were new")
    if action == "revoke":
        _after_revoke(pair, shell)
    if action in FILTERING:
        out.note(f"sent from now on: {pair_page.filter_text(pair['filter'])}; what was sent before stays with the peer")
    return 0


def _after_revoke(pair: dict[str, Any], shell: Shell) -> None:
    """Tell what the end of a pair means, and how records of the peer may still arrive."""
    peer, hubs = label_of(pair["peer_did"]), pair.get("hubs") or []
    if not pair.get("already"):
        shell.out.note(f"tokens of both directions no longer work here; {peer} is told if it can be reached")
    if pair.get("blocked"):
        shell.out.note(f"what {peer} signed is refused from now on, also where a hub brings it")
    elif hubs:
        names = ", ".join(f"{label_of(hub['peer_did'])} ({hub['pair_id']})" for hub in hubs)
        shell.out.note(f"records that {peer} signed may still arrive through {names}; --block refuses them")


def _path(args: Namespace) -> str:
    return f"{PAIRS}/{quote(args.pair)}"


def _pair_option(parser: Parser) -> None:
    parser.add_argument("pair", metavar="PAIR", help="pair id, a unique prefix of one, or the peer's DID")


def _revoke_options(parser: Parser) -> None:
    _pair_option(parser)
    parser.add_argument("--reason", help="is kept in the pair's record")
    parser.add_argument("--block", action="store_true", help="refuse what the peer signed, also through hubs")


def _resume_options(parser: Parser) -> None:
    _pair_option(parser)
    parser.add_argument("--resync", action="store_true", help="read all from the start again and wait for it")


def _refresh_options(parser: Parser) -> None:
    _pair_option(parser)
    parser.add_argument("--expect-key", metavar="KEY", help="the peer's key, six words or multibase, as its owner says")


def _mode_options(parser: Parser) -> None:
    _pair_option(parser)
    parser.add_argument("mode", metavar="MODE", help="polling, continuous or on-demand")


def _interval_options(parser: Parser) -> None:
    _pair_option(parser)
    parser.add_argument("interval", metavar="DUR", help="time between two polls, such as 30s or 5m; at least 1s")


def _relay_options(parser: Parser) -> None:
    _pair_option(parser)
    parser.add_argument("relay", metavar="on|off", choices=("on", "off"), help="off: only what this instance signed")


def _allow_options(parser: Parser) -> None:
    _pair_option(parser)
    parser.add_argument("thread", metavar="THREAD", nargs="*", help="a thread that is sent; repeatable")
    parser.add_argument("--remove", action="store_true", help="name these threads no more")
    parser.add_argument("--clear", action="store_true", help="name none: without a rule all is sent again")


def _rule_options(parser: Parser) -> None:
    _pair_option(parser)
    parser.add_argument("expression", metavar="EXPRESSION", nargs="?", help="true for the records that are sent")
    parser.add_argument("--clear", action="store_true", help="take the rule away: without threads named all is sent")


_EXAMPLE: Final = "pair_a1b2c3d4"

TREE: Final = (
    Group(
        "federation",
        "A pair is the consented relation of two instances: both know each other's key and hold a token of the other.\n"
        "Each side then pulls what the namespaces that both share hold, in the pair's mode.",
        "spl federation pair https://bob.example/",
        (
            Command(
                "federation pair",
                "Discovers the peer at URL, verifies its signed manifest, exchanges tokens and syncs once.\n"
                "A peer that approves by hand answers later: the command waits --wait, the daemon until it is decided.",
                "spl federation pair https://bob.example/ --wait 5m",
                handshake.pair,
                handshake.options,
            ),
            Command(
                "federation list",
                "Lists the pairs with state, mode and the time of the last sync.\n"
                "States: establishing, active, paused, degraded (errors recur), revoked (final, kept for audit).",
                "spl federation list -o wide",
                _list,
            ),
            Command(
                "federation show",
                "Shows all about a pair: cursors and lag of both directions, manifest, keys, token ids, transitions.\n"
                "A token's text is never shown once it was issued.",
                f"spl federation show {_EXAMPLE}",
                _show,
                _pair_option,
            ),
            Command(
                "federation pause",
                "Stops the sync of a pair in both directions; credentials stay valid and no record is lost.\n"
                "Only the side that paused can resume.",
                f"spl federation pause {_EXAMPLE}",
                _pause,
                _pair_option,
            ),
            Command(
                "federation resume",
                "Takes up the sync of a paused pair at the saved cursor.\n"
                "All is read once more in the background, so that whatever the cursor skipped arrives too;\n"
                "a pair that the peer paused stays paused until the peer resumes it.",
                f"spl federation resume {_EXAMPLE}",
                _resume,
                _resume_options,
            ),
            Command(
                "federation revoke",
                "Ends a pair for good: its tokens stop working here at once, then the peer is told.\n"
                "What was synced stays on both sides, and so does the pair's record.",
                f"spl federation revoke {_EXAMPLE} --reason 'laptop sold'",
                _revoke,
                _revoke_options,
            ),
            Command(
                "federation refresh",
                "Fetches the peer's manifest again now, after the peer rotated its key or moved.\n"
                "It also completes a pending pair, renews a due token, and learns of the peer's pause or revocation.\n"
                "Where two key chains of the peer contradict each other, --expect-key settles which one holds.",
                f"spl federation refresh {_EXAMPLE}",
                _refresh,
                _refresh_options,
            ),
            Command(
                "federation set-token",
                "Installs a token that the peer's operator minted for this pair (token mint --pair), from stdin.\n"
                "It is tried in one call first, and the token before it stays until then.",
                f"spl federation set-token {_EXAMPLE} < token.txt",
                _set_token,
                _pair_option,
            ),
            Command(
                "federation set-mode",
                "Sets when a pair syncs: continuous holds a stream open and gets records at once, polling asks at an\n"
                "interval, on-demand syncs only when `spl sync` is run.\n"
                "It is this side's own choice, for what this side pulls.",
                f"spl federation set-mode {_EXAMPLE} on-demand",
                _set_mode,
                _mode_options,
            ),
            Command(
                "federation set-poll-interval",
                "Sets how long a polling pair waits between two polls; the default is 5 minutes.\n"
                "In another mode it is stored, and applies once the mode is polling.",
                f"spl federation set-poll-interval {_EXAMPLE} 30s",
                _set_poll_interval,
                _interval_options,
            ),
            Command(
                "federation set-relay",
                "Sets whether the peer gets what other instances signed and this one passes on, as a hub does.\n"
                "Off, it gets only records that this instance signed; either way only of what the pair shares.",
                f"spl federation set-relay {_EXAMPLE} off",
                _set_relay,
                _relay_options,
            ),
            Command(
                "federation thread-allow",
                "Narrows what the peer gets to the threads named here, and to what the pair's thread-rule is true of.\n"
                "Without either all is sent that the pair shares; it takes effect at once and recalls nothing.",
                f"spl federation thread-allow {_EXAMPLE} th_tasks th_release",
                _thread_allow,
                _allow_options,
            ),
            Command(
                "federation thread-rule",
                "Narrows what the peer gets to records of which the expression is true, and to the threads allowed.\n"
                "It asks for record.thread, .actor, .act, .namespace, .data_type, .kind and .voucher, all texts;\n"
                "spl config add-permission-rule --help explains the language. A rule that fails is false.",
                f"spl federation thread-rule {_EXAMPLE} 'record.thread.startsWith(\"th_public_\")'",
                _thread_rule,
                _rule_options,
            ),
            grants.COMMAND,
            *grants.COMMANDS,
            verify.COMMAND,
            soak.COMMAND,
        ),
    ),
)
