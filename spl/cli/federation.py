"""`spl federation`: the pairs with other instances."""

import os
from argparse import Namespace
from collections.abc import Callable
from typing import Any, Final

from ..client.calls import quote
from ..client.errors import refusal
from ..core.errors import count
from ..core.pair.modes import MODES, POLL_INTERVAL_MS_MAX, POLLING
from ..core.value import Json
from ..core.when import span_fine
from . import grants, pair_page, soak, verify
from .command import PAIR, Arg, Command, Group, Shell, UsageError, arg, duration
from .out import Out, label_of, state_paint
from .pair import COMMAND as PAIR_COMMAND
from .pair import PAIRS

FILTERING: Final = frozenset({"relay", "thread-allow", "thread-rule"})
"""Actions that change which records are sent."""
POLL_MS_MIN: Final = 1000

Run = Callable[[Namespace, Shell], int]


def _list(args: Namespace, shell: Shell) -> int:
    pairs = shell.ctl.items(PAIRS)
    if shell.printed("spl.pairs/1", pairs):
        return 0
    out, total = shell.out, len(pairs)
    if not args.all and not out.wide:
        pairs = [pair for pair in pairs if pair["state"] != "revoked"]
    names = out.dids(pair["peer_did"] for pair in pairs)
    titles = ["PAIR ID", "PEER DID", "STATE", "MODE", "LAST SYNC"]
    rows = [
        [
            pair["pair_id"],
            names[pair["peer_did"]],
            pair_page.standing(pair, out),
            pair["mode"],
            out.ago(pair["last_sync_at"]),
        ]
        for pair in pairs
    ]
    if out.wide or any(_waiting(pair) not in ("-", "0") for pair in pairs):
        titles.append("OUT")
        for row, pair in zip(rows, pairs, strict=True):
            row.append(_waiting(pair))
    if out.wide:
        titles += ["NAMESPACES", "ROLE", "URL"]
        for row, pair in zip(rows, pairs, strict=True):
            row += [",".join(pair["namespaces"]), "initiator" if pair["initiator"] else "responder", pair["url"]]
    none = "no pairs yet: spl federation pair URL" if not total else "no live pairs: spl federation pair URL"
    keep = [title for title in ("PAIR ID", "STATE", "PEER DID", "OUT", "LAST SYNC") if title in titles]
    out.table(titles, rows, {"STATE": state_paint}, keep=keep, none=none)
    if hidden := total - len(pairs):
        out.note(f"{count(hidden, 'revoked pair')} not shown: spl federation list --all")
    troubled = [
        pair["pair_id"] for pair in pairs
        if pair["state"] == "degraded" or pair.get("offline_since") or pair.get("one_way")
    ]  # fmt: skip
    if troubled:
        need = "needs" if len(troubled) == 1 else "need"
        out.hint(f"! {count(len(troubled), 'pair')} {need} attention: spl doctor {troubled[0]}")
    return 0


def _waiting(pair: dict[str, Any]) -> str:
    """Return how many records wait here for the peer, "-" if that is not known or it gets none."""
    lag = (pair.get("outbound") or {}).get("lag_records")
    return "-" if lag is None or pair["state"] == "revoked" else str(lag)


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
    body: Json = {"reason": args.reason} if args.reason else {}
    return _act(args, shell, "revoke", {**body, "block": True} if args.block else body, "revoked")


def _refresh(args: Namespace, shell: Shell) -> int:
    body: Json = {"expect_key": args.expect_key} if args.expect_key else {}
    return _act(args, shell, "refresh", {**body, "url": args.url} if args.url else body, "refreshed")


def _set_token(args: Namespace, shell: Shell) -> int:
    text = shell.token()
    if not text:
        raise UsageError("usage", "no token on stdin", hint=f"spl federation set-token {args.pair} < FILE")
    return _act(args, shell, "set-token", {"token": text}, "token installed")


def _set_mode(args: Namespace, shell: Shell) -> int:
    body: Json = {"mode": args.mode}
    return _act(args, shell, "mode", {**body, "both": True} if args.both else body, f"mode {args.mode}")


def _set_carrier(args: Namespace, shell: Shell) -> int:
    body: Json = {"url": args.url}
    body |= {name: os.path.abspath(path) for name in ("creds", "ca") if (path := getattr(args, name))}
    return _act(args, shell, "carrier", body, f"carrier {args.url}")


def _set_poll_interval(args: Namespace, shell: Shell) -> int:
    done = f"poll interval {span_fine(args.interval)}"
    return _act(args, shell, "poll-interval", {"interval_ms": args.interval}, done)


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


def _act(args: Namespace, shell: Shell, action: str, body: Json, done: str) -> int:
    """Ask for one action and print `PAIR  done` (`already_done` if nothing changed) and the state."""
    pair = shell.ctl.post(f"{_path(args)}/{action}", body)
    out = shell.out
    asked = pair.get("asked") or {}
    failed = refusal(asked["error"]) if asked.get("error") else None
    if shell.printed("spl.pair/1", pair):
        return failed.exit_code if failed else 0
    word = (f"{done} already" if " " in done else f"already_{done}") if pair.get("already") else done
    state = pair_page.state_of(pair)
    out.line(f"{pair['pair_id']}  {word}" + (f", state {state}" if not word.endswith(state) else ""))
    if action == "poll-interval" and pair["mode"] != POLLING:
        out.note(f"it applies in mode polling; the mode of this pair is {pair['mode']}")
    if action == "mode":
        _directions(pair, asked, out)
    if action == "refresh" and "url" in body:
        out.line(f"{label_of(pair['peer_did'])} is at {pair['url']}")
    if action == "resume" and "records" in pair:
        out.line(f"read again from the start: {count(pair['records'], 'new record')}")
    if action == "revoke":
        _after_revoke(pair, shell)
    _after_engine(pair.get("consumers") or {}, out)
    for reader in pair.get("readers") or []:
        out.note(
            f"remove its user, whose inbox is _INBOX_{reader['reader']}, from {reader['url']} (sink {reader['sink']})"
        )
    if action in FILTERING:
        out.note(f"sent from now on: {pair_page.filter_text(pair['filter'])}; what was sent before stays with the peer")
    if failed:
        out.failure(failed)
    return failed.exit_code if failed else 0


def _after_engine(consumers: dict[str, Any], out: Out) -> None:
    """Print what became of the consumers at the server that the pair was read from until now."""
    if consumers.get("deleted"):
        out.line(f"deleted {count(consumers['deleted'], 'consumer')} at the server")
    if consumers.get("commands"):
        error = consumers["error"] or {}
        who = "; its operator deletes them" if error.get("code") == "SINK_AUTH" else ""
        out.warn(f"! consumers stay at the server: {error.get('message', '')}{who}")
        for command in consumers["commands"]:
            out.warn(f"  fix       {command}")


def _directions(pair: dict[str, Any], asked: dict[str, Any], out: Out) -> None:
    """Print which way each mode moves records: ours what we fetch, the peer's what it fetches from here."""
    peer, theirs = label_of(pair["peer_did"]), (pair.get("peer_view") or {}).get("mode")
    if asked and not asked.get("error"):
        out.line(f"both directions: {peer} fetches from here in mode {asked['mode']} too")
        return
    out.note(
        f"this is how we fetch from {peer}; {peer} fetches ours by its own mode" + (f", {theirs}" if theirs else "")
    )


def _after_revoke(pair: dict[str, Any], shell: Shell) -> None:
    """Print what the end of the pair means, and how records of the peer may still arrive."""
    peer, hubs = label_of(pair["peer_did"]), pair.get("hubs") or []
    if not pair.get("already"):
        shell.out.note(f"tokens of both directions no longer work here; {peer} is told if it can be reached")
    if pair.get("blocked"):
        shell.out.note(f"what {peer} signed is refused from now on, also through hubs")
    elif hubs:
        names = ", ".join(f"{label_of(hub['peer_did'])} ({hub['pair_id']})" for hub in hubs)
        shell.out.note(f"records that {peer} signed may still arrive through {names}; --block refuses them")


def _path(args: Namespace) -> str:
    return f"{PAIRS}/{quote(args.pair)}"


_EXPRESSION: Final = arg("expression", metavar="EXPRESSION", nargs="?", help="true for what to send")


def _command(verb: str, concept: str, example: str, run: Run, *args: Arg) -> Command:
    """Return a command about one pair; the example goes on after `spl federation VERB bob`."""
    return Command(f"federation {verb}", concept, f"spl federation {verb} bob{example}", run, (PAIR, *args))


TREE: Final = (
    Group(
        "federation",
        "A pair is the agreed relation of two instances: each knows the other's key and holds a token of the other.\n"
        "Each side then pulls the records of the namespaces that both share, in the mode that it chose.",
        "spl federation pair https://bob.example/",
        (
            PAIR_COMMAND,
            Command(
                "federation list",
                "Lists the pairs with state, mode and the time of the last sync; OUT: records that wait for the peer.\n"
                "States: establishing, active, paused, degraded (errors recur), revoked (final; shown with --all);\n"
                "a peer that does not answer is offline beside its state; one-way: only one side reaches the other.",
                "spl federation list -o wide",
                _list,
                (arg("--all", action="store_true", help="revoked pairs, too; -o wide and json have them always"),),
            ),
            _command(
                "show",
                "Shows a pair in full: cursors and lag of both directions, manifest, keys, token ids, transitions.\n"
                "last_sync_cursor is our position in the peer's log: clock counts the records up to it that the pair\n"
                "shares. Manifests (7 days) and tokens (90 days) renew by themselves, long before they expire.",
                "",
                _show,
            ),
            _command(
                "pause",
                "Stops the sync of a pair in both directions; credentials stay valid and no record is lost.\n"
                "Only the side that paused can resume.",
                "",
                _pause,
            ),
            _command(
                "resume",
                "Resumes the sync of a paused pair at the saved cursor.\n"
                "Everything is read once more in the background, so that records behind the cursor arrive too;\n"
                "a pair that the peer paused stays paused until the peer resumes it.\n"
                "If intake was paused because the peer brought in its bytes of a day, it may bring in as many again.",
                "",
                _resume,
                arg("--resync", action="store_true",
                    help="read everything from the start now, and end once that is done; known records are skipped"),
            ),
            _command(
                "revoke",
                "Ends a pair for good: its tokens stop working here at once, then the peer is told.\n"
                "Synced records stay on both sides, and so does the history of the pair. Pairing again makes a new\n"
                "pair; what was written meanwhile crosses it only with `spl federation pair URL --backfill`.",
                " --reason 'laptop sold'",
                _revoke,
                arg("--reason", help="a text of yours for the history of the pair; the peer gets it too"),
                arg("--block", action="store_true",
                    help="also refuse from now on what the peer signed, also from hubs; pairing again lifts that"),
            ),
            _command(
                "refresh",
                "Fetches the peer's manifest again now, after the peer rotated its key or moved.\n"
                "It also completes a pending pair, renews a due token, and learns of the peer's pause or revocation.\n"
                "Where the peer moved and cannot tell us, --url says where it is now; it must be the same instance.\n"
                "If two key chains of the peer contradict each other, --expect-key decides which one is right.",
                "",
                _refresh,
                arg("--url", metavar="URL", help="the peer's new address"),
                arg("--expect-key", metavar="KEY",
                    help="the peer's key, as its owner says it: its six words, quoted, or in full"),
            ),
            _command(
                "set-token",
                "Installs a token that the peer's operator minted for this pair (token mint --pair), from stdin.\n"
                "It is tried in one call first, and the previous token stays until that succeeds.",
                " < token.txt",
                _set_token,
            ),
            _command(
                "set-mode",
                "Sets when this side pulls: continuous holds a stream open and gets records at once, polling asks\n"
                "at an interval, on-demand pulls only when `spl sync` runs. The peer sets its own mode for its pulls;\n"
                "--both asks it for the same, and exits 4 if it keeps another (federation.follow_mode decides there).",
                " on-demand",
                _set_mode,
                arg("mode", metavar="MODE", choices=MODES, help="polling, continuous or on-demand"),
                arg("--both", action="store_true", help="ask the peer to pull from here in this mode too"),
            ),
            _command(
                "set-carrier",
                "Sets a stream engine that this side takes the peer's records from, which the peer fills by a sink.\n"
                "With none it polls again. Each record is judged as any of the pair, and what the engine lacks is\n"
                "pulled. At the peer `spl sink acl` prints what the server must permit.",
                " nats://127.0.0.1:4222",
                _set_carrier,
                arg("url", metavar="URL|none", help="nats://HOST:PORT or tls://HOST:PORT; none: no engine"),
                arg("--creds", metavar="FILE", help="the user's .creds or nkey seed file, read at each connection"),
                arg("--ca", metavar="FILE", help="certificates of a private authority (default: the system's)"),
            ),
            _command(
                "set-poll-interval",
                "Sets how long a polling pair waits between two polls; the default is 5 minutes.\n"
                "In another mode it is stored, and applies once the mode is polling.",
                " 30s",
                _set_poll_interval,
                arg("interval", metavar="DUR", type=duration(POLL_MS_MIN, POLL_INTERVAL_MS_MAX),
                    help="time between two polls, such as 30s or 5m; from 1s to 30d"),
            ),
            _command(
                "set-relay",
                "Sets whether the peer receives records that other instances signed, as from a hub.\n"
                "Off, it receives only records that this instance signed; in both cases only what the pair shares.",
                " off",
                _set_relay,
                arg("relay", metavar="on|off", choices=("on", "off"), help="off: only what this instance signed"),
            ),
            _command(
                "thread-allow",
                "Narrows what the peer receives: a record is sent if its thread is named here, or thread-rule holds\n"
                "of it. Without either, all that the pair shares is sent. It applies at once and recalls nothing.",
                " th_tasks th_release",
                _thread_allow,
                arg("thread", metavar="THREAD", nargs="*", help="a thread id; these are added to the list"),
                arg("--remove", action="store_true", help="take these threads from the list instead"),
                arg("--clear", action="store_true", help="empty the list; without a thread-rule everything is sent"),
            ),
            _command(
                "thread-rule",
                "Narrows what the peer receives: a record is sent if the expression holds of it, or thread-allow\n"
                "names its thread. Without either, everything that the pair shares is sent.\n"
                "Its facts are record.thread, .actor, .act, .namespace, .data_type, .kind and .voucher, all texts;\n"
                "spl config add-permission-rule --help explains the language. A rule that fails counts as false.",
                " 'record.thread.startsWith(\"th_public_\")'",
                _thread_rule,
                _EXPRESSION,
                arg("--clear", action="store_true", help="remove the rule; without allowed threads everything is sent"),
            ),
            *grants.COMMANDS,
            verify.COMMAND,
            soak.COMMAND,
        ),
    ),
)  # fmt: skip
