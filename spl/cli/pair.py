"""`spl federation pair`: the handshake as the operator sees it, step by step."""

import json
from argparse import Namespace
from collections.abc import Mapping
from typing import Any, Final

from ..client.calls import JSON
from ..client.errors import refusal
from ..core.errors import CODES, cli_code, plural
from ..core.when import span_fine
from .client import LONG_S, CtlError
from .command import INTERRUPTED, Command, Shell, UsageError, arg, duration
from .out import label_of, scopes_text

PAIRS: Final = "/v1/federation/pairs"
WAIT_MS: Final = 60_000
WAIT_MS_MAX: Final = 24 * 3_600_000
"""How long a request may wait for its approval at all."""


def pair(args: Namespace, shell: Shell) -> int:
    """Run the handshake through the daemon and print its steps; return 8 if --wait ended before it did."""
    body = request(args)
    view = _View(args.url, shell)
    try:
        for step in shell.ctl.lines(PAIRS, json.dumps(body).encode(), JSON, args.wait / 1000 + LONG_S):
            if shell.out.form == "jsonl":
                shell.out.json_line(step)
            view.take(step)
            if view.ended:
                break
        else:
            raise CtlError(
                "disconnected", "the daemon ended its answer early; it completes the steps that it has stored"
            )
    except KeyboardInterrupt:
        view.interrupted()
        return INTERRUPTED
    if shell.out.form == "json":
        shell.printed("spl.pair/1", view.data())
    return view.code


def request(args: Namespace) -> dict[str, Any]:
    """Return the body of the daemon's pair request, with the options that were given."""
    body: dict[str, Any] = {"url": args.url, "wait_ms": args.wait}
    if args.map:
        body["maps"] = [_map(text) for text in args.map]
    if args.no_strict:
        body["strict"] = False
    given = {
        "namespaces": args.namespace,
        "auto_generate_identity": args.auto_generate_identity,
        "expect_did": args.expect_did,
        "expect_key": args.expect_key,
        "backfill": args.backfill,
        "from_now": args.from_now,
        "actors": args.actors,
    }
    return body | {name: value for name, value in given.items() if value}


def map_text(item: object) -> str:
    """Return a namespace map as people write it: local:peer."""
    if isinstance(item, Mapping):
        return f"{item.get('local')}:{item.get('peer')}"
    if isinstance(item, list):
        return ":".join(map(str, item))
    return str(item)


class _View:
    """Prints the daemon's steps as lines, and records how the handshake ended."""

    def __init__(self, url: str, shell: Shell) -> None:
        self.ended = False
        self.code = 0
        self._url = url
        self._shell = shell
        self._label = "the peer"
        self._pair_id = ""
        self._steps: list[dict[str, Any]] = []

    def take(self, step: dict[str, Any]) -> None:
        """Print one step; a step of a newer daemon that is unknown here is skipped."""
        name = step.get("step")
        if name != "waiting":
            self._steps.append(step)
        if "pair_id" in step:
            self._pair_id = str(step["pair_id"])
        if name == "error":
            raise refusal(step["error"])
        if name == "manifest":
            self._label = label_of(str(step["did"]))
        if name == "waiting":
            self._wait(step)
        elif name == "pending":
            self._pending()
        elif name == "completing":
            self._completing(step)
        elif self._shell.out.form in ("table", "wide"):
            self._print(step)
        self.ended = name in ("active", "pending", "completing")

    def data(self) -> dict[str, Any]:
        """Return the result for programs: the last step's facts and all steps."""
        last = self._steps[-1]
        state = "establishing" if self.code else "active"
        return {"state": state, **last, "pair_id": self._pair_id, "steps": self._steps}

    def interrupted(self) -> None:
        """Say after Ctrl-C that a request that is on its way stays, and how to withdraw it."""
        if self._pair_id:
            self._shell.out.warn("interrupted; the daemon goes on asking, and the peer can still approve")
            self._shell.out.warn(f"  withdraw  spl federation revoke {self._pair_id}")

    def _print(self, step: Mapping[str, Any]) -> None:
        name, out = step.get("step"), self._shell.out
        if name == "manifest":
            out.line(f"Pairing with {step['did']} ({self._url}) ...")
        elif name == "verified":
            out.line("  ✓ manifest fetched + signature verified")
        elif name == "posted" and step["status"] == 202:
            out.line(f"  ! POST /v1/federation/pair → 202 Accepted ({self._label} approves by hand)")
        elif name == "posted":
            out.line(f"  ✓ POST /v1/federation/pair → {step['status']} OK")
        elif name == "token":
            out.line(f"  ✓ peer token persisted ({scopes_text(step['scopes'], ', ')})")
        elif name == "recorded":
            out.line(f"  ✓ recorded on th_federation_pairs (pair_id: {step['pair_id']})")
        elif name == "present":
            out.line("  · only new records cross: a pair with this peer was ended; older ones too with --backfill")
        elif name == "synced" and step.get("error"):
            error = step["error"]
            out.line(
                f"  ! first sync failed: {error['message']} [{cli_code(error['code'])}]; it is tried again by itself"
            )
        elif name == "synced":
            out.line(f"  ✓ initial sync cursor advanced ({step['records']} {plural(step['records'], 'record')})")
        elif name == "moved":
            out.line(f"  ✓ {self._label} has moved: {step['url']}")
        elif name == "active":
            out.line()
            out.line("Pair active.")
            self._compare(step)

    def _compare(self, step: Mapping[str, Any]) -> None:
        """Hint at the comparison by voice: the six words of each side's key, one line each."""
        label, peer = f"{step['label']}:", f"{step['peer_label']}:"
        width = max(len(label), len(peer))
        text = "hint: compare keys by voice. "
        self._shell.out.hint(f"{text}{label:<{width}} {step['our_words']}")
        self._shell.out.hint(f"{' ' * len(text)}{peer:<{width}} {step['peer_words']}")
        self._sharing(step)
        self._shell.out.hint(f"hint: watch it with: spl federation show {step['pair_id']}")

    def _sharing(self, step: Mapping[str, Any]) -> None:
        """Hint at what is shared now, who else receives it, and what the peer left out."""
        out, peer = self._shell.out, step["peer_label"]
        maps = [map_text(item) for item in step.get("maps") or []]
        names = ", ".join([*step["namespaces"], *(f"{each} (L1)" for each in maps)])
        out.hint(f"hint: shared with {peer}: {names}; instances that {peer} shares it with receive it as well")
        if step.get("left_out"):
            out.hint(f"hint: not agreed to by {peer}: {', '.join(step['left_out'])}; there it is private or missing")

    def _wait(self, step: Mapping[str, Any]) -> None:
        left = span_fine(-(-int(step["left_ms"]) // 1000) * 1000)  # rounded up, so that it begins with what --wait says
        self._shell.out.progress(
            f"  · waiting for approval, {left} left. On {self._label}: spl aitl approve {self._pair_id}"
        )

    def _pending(self) -> None:
        """Print that the daemon goes on asking, and the next steps of both sides."""
        entry = CODES["handshake-pending"]
        self.code = entry.exit
        out = self._shell.out
        out.warn(f"still pending: {self._label} has not decided yet; the daemon goes on asking [handshake-pending]")
        out.warn(f"  fix       on {self._label}: spl aitl approve {self._pair_id}")
        out.warn(f"  watch     spl federation show {self._pair_id}")

    def _completing(self, step: Mapping[str, Any]) -> None:
        """Print that the peer approved and what goes on by itself, and how to wait for it."""
        self.code = CODES["pair-completing"].exit
        out, count = self._shell.out, int(step["records"])
        so_far = f" ({count} {plural(count, 'record')} so far)" if count else ""
        going_on = f"its first sync goes on by itself{so_far}"
        if step["state"] != "active":
            going_on = "the last message of the handshake and the first sync follow by themselves"
        out.warn(f"{self._label} approved; {going_on} [pair-completing]")
        out.warn(f"  wait      spl sync {self._pair_id}")
        out.warn(f"  watch     spl federation show {self._pair_id}")


def _map(text: str) -> dict[str, str]:
    local, colon, peer = text.partition(":")
    if not (local and colon and peer) or ":" in peer:
        raise UsageError("usage", f"--map {text!r} is not LOCAL:PEER")
    return {"local": local, "peer": peer}


COMMAND: Final = Command(
    "federation pair",
    "Discovers the peer at URL, verifies its signed manifest, exchanges tokens and syncs once.\n"
    "A peer that approves by hand answers later: the command waits for --wait, the daemon until it is decided.\n"
    "It exits 8 if --wait ends before the decision or the first sync; both go on by themselves. Ctrl-C ends the\n"
    "waiting alone; `spl federation revoke PAIR` withdraws the request. The cursor is our position in its log.\n"
    "With the new URL of a peer that is paired already, it takes that address and makes no second pair.",
    "spl federation pair https://bob.example/ --wait 5m",
    pair,
    (
        arg("url", metavar="URL", help="where the peer's daemon is reached, as its `spl status` shows it"),
        arg("--map", action="append", metavar="LOCAL:PEER",
            help="offer our namespace LOCAL under the peer's name PEER, as hashes (`spl help consent`); repeatable"),
        arg("--namespace", action="append", metavar="N",
            help="share exactly this namespace; repeatable (default: default and all that are marked shared)"),
        arg("--no-strict", action="store_true",
            help="take a manifest that is expired or from the future, as by a clock that is wrong; signatures count"),
        arg("--auto-generate-identity", action="store_true", help="make an identity of our own first if there is none"),
        arg("--wait", type=duration(0, WAIT_MS_MAX), default=WAIT_MS, metavar="DUR",
            help="how long to wait for an approval, such as 5m, at most 24h (default: 60s)"),
        arg("--expect-did", metavar="DID", help="refuse a peer that has not this DID"),
        arg("--expect-key", metavar="KEY",
            help="refuse a peer that has not this key of `spl identity show` there: its six words, quoted, or in full"),
        arg("--backfill", choice="start", action="store_true",
            help="fetch all that the peer holds (default, unless a pair with it was ended before)"),
        arg("--from-now", choice="start", action="store_true",
            help="fetch only what is written from now on (default after a pair with it was ended)"),
        arg("--actors", action="append", metavar="DID",
            help="take records of this author only, such as did:sync:user:bob; repeatable (default: of all)"),
    ),
)  # fmt: skip
