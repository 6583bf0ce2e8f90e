"""`spl federation pair`: the handshake as the operator sees it, step by step."""

import json
from argparse import Namespace
from collections.abc import Mapping
from typing import Any, Final

from ..core.errors import CODES
from ..core.when import duration_ms, span_fine
from .client import JSON, LONG_S, CtlError, refusal
from .command import Parser, Shell, UsageError
from .out import label_of, scopes_text

PAIRS: Final = "/v1/federation/pairs"


def options(parser: Parser) -> None:
    """Declare the options of `federation pair`."""
    parser.add_argument("url", metavar="URL", help="where the peer's daemon is reached")
    parser.add_argument(
        "--map", action="append", metavar="LOCAL:PEER", help="propose to share across these namespaces; repeatable"
    )
    parser.add_argument(
        "--namespace", action="append", metavar="N",
        help="share exactly this one; repeatable (default: the namespace default and all that are marked shared)",
    )  # fmt: skip
    parser.add_argument("--no-strict", action="store_true", help="skip the checks of expiry and clock, nothing else")
    parser.add_argument("--auto-generate-identity", action="store_true", help="make an identity where there is none")
    parser.add_argument("--wait", default="60s", metavar="DUR", help="how long to wait for an approval (default 60s)")
    parser.add_argument("--expect-did", metavar="DID", help="refuse any other peer")
    parser.add_argument("--expect-key", metavar="KEY", help="refuse any other key (multibase)")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--backfill", action="store_true", help="fetch the history also when re-pairing")
    start.add_argument("--from-now", action="store_true", help="leave out what the peer holds already")
    parser.add_argument("--actors", action="append", metavar="DID", help="take records of this actor only; repeatable")


def pair(args: Namespace, shell: Shell) -> int:
    """Run the handshake through the daemon and show its steps; 8 when the peer's operator has not decided in time."""
    body = request(args)
    wait_ms = body["wait_ms"]
    view = _View(args.url, shell)
    for step in shell.ctl.lines(PAIRS, json.dumps(body).encode(), JSON, wait_ms / 1000 + LONG_S):
        if shell.out.form == "jsonl":
            shell.out.json_line(step)
        view.take(step)
        if view.ended:
            break
    else:
        raise CtlError("disconnected", "the daemon ended the handshake's answer early; it goes on with what is durable")
    if shell.out.form == "json":
        shell.printed("spl.pair/1", view.data())
    return view.code


def request(args: Namespace) -> dict[str, Any]:
    """Return the body of the daemon's pair request; options left out are not in it."""
    body: dict[str, Any] = {"url": args.url, "wait_ms": duration_ms(args.wait)}
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
    """Turns the daemon's steps into lines, and remembers how it ended."""

    def __init__(self, url: str, shell: Shell) -> None:
        self.ended = False
        self.code = 0
        self._url = url
        self._shell = shell
        self._label = "the peer"
        self._pair_id = ""
        self._steps: list[dict[str, Any]] = []

    def take(self, step: dict[str, Any]) -> None:
        """Show one step; a step that only a newer daemon knows is passed over."""
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
        elif self._shell.out.form in ("table", "wide"):
            self._print(step)
        self.ended = name in ("active", "pending")

    def data(self) -> dict[str, Any]:
        """Return the result for programs: the last step's facts and all steps."""
        last = self._steps[-1]
        state = "establishing" if self.code else "active"
        return {**last, "pair_id": self._pair_id, "state": state, "steps": self._steps}

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
        elif name == "synced":
            out.line(f"  ✓ initial sync cursor advanced ({step['records']} records)")
        elif name == "active":
            out.line()
            out.line("Pair active.")
            self._compare(step)

    def _compare(self, step: Mapping[str, Any]) -> None:
        """Hint at the voice check: each side's key as six words, under one another."""
        label, peer = f"{step['label']}:", f"{step['peer_label']}:"
        width = max(len(label), len(peer))
        text = "hint: compare keys by voice. "
        self._shell.out.hint(f"{text}{label:<{width}} {step['our_words']}")
        self._shell.out.hint(f"{' ' * len(text)}{peer:<{width}} {step['peer_words']}")
        self._sharing(step)
        self._shell.out.hint(f"hint: follow it with: spl federation show {step['pair_id']}")

    def _sharing(self, step: Mapping[str, Any]) -> None:
        """Hint at what is shared now, what the peer left out, and who else gets it."""
        out, peer = self._shell.out, step["peer_label"]
        maps = [map_text(item) for item in step.get("maps") or []]
        names = ", ".join([*step["namespaces"], *(f"{each} (L1)" for each in maps)])
        out.hint(f"hint: shared with {peer}: {names}; whoever {peer} shares it with gets it from there too")
        if step.get("left_out"):
            out.hint(f"hint: not agreed to by {peer}: {', '.join(step['left_out'])}; there it is private, or not there")

    def _wait(self, step: Mapping[str, Any]) -> None:
        left = span_fine(-(-int(step["left_ms"]) // 1000) * 1000)  # rounded up, so that it begins with what --wait says
        self._shell.out.progress(
            f"  · waiting for approval, {left} left. On {self._label}: spl aitl approve {self._pair_id}"
        )

    def _pending(self) -> None:
        """Say that the daemon goes on without us."""
        entry = CODES["handshake-pending"]
        self.code = entry.exit
        out = self._shell.out
        out.warn(f"still pending: {self._label} has not decided yet; the daemon goes on asking [handshake-pending]")
        out.warn(f"  fix       on {self._label}: spl aitl approve {self._pair_id}")
        out.warn(f"  watch     spl federation show {self._pair_id}")


def _map(text: str) -> dict[str, str]:
    local, colon, peer = text.partition(":")
    if not (local and colon and peer) or ":" in peer:
        raise UsageError("usage", f"--map {text!r} is not LOCAL:PEER")
    return {"local": local, "peer": peer}
