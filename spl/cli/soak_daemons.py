"""Three throw-away daemons for a soak.

`a` and `b` are the pair.  `c` asks `a` to pair with it, again and again, because the load needs approval requests: each
is a request, an approval by a's operator, a handshake and a revocation, as people do it.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ..client.calls import JSON, quote
from ..client.errors import refusal
from ..core.errors import count
from .client import CtlError
from .logs import filters_of, newest
from .pair import PAIRS
from .soak_driver import Target
from .temporary import TemporaryDaemons

NAMES: Final = ("a", "b", "c")
DRAIN_S: Final = 15.0
ASK_MS: Final = 20_000
FAULT_LINES: Final = 5


class Daemons(TemporaryDaemons):
    """The daemons of a soak, and the pair of a and b."""

    names = NAMES
    purpose = "soak"
    pair_id = ""

    def begin(self) -> None:
        """Pair a with b."""
        self.pair_id = self._pair()

    def target(self) -> Target:
        """Return the pair of a and b, driven at a."""
        sides = tuple((name, self._ctls[name].kept) for name in ("a", "b"))
        return Target(
            self.pair_id, "default", sides, "queue_records", DRAIN_S, approve=self.approve, dead=self.dead,
        )  # fmt: skip

    def approve(self) -> None:
        """Make c ask, a's operator approve, both finish the handshake, and c revoke the pair.  Raises CtlError."""
        pair_id = self._agreed("c", "a", from_now=True)
        self._ctls["c"].post(f"{PAIRS}/{quote(pair_id)}/revoke", {"reason": "the soak asks again"})

    def differences(self, threads: Sequence[str]) -> list[str]:
        """Return the differences between the sets of a and b on these threads; [] if they are equal."""
        found = []
        for thread in threads:
            ours, theirs = (self._digest(name, thread) for name in ("a", "b"))
            if ours != theirs:
                found.append(
                    f"thread {thread} has {count(ours[0], 'record')} on a, {theirs[0]:,} on b, and they differ"
                )
        return found

    def log_lines(self) -> list[str]:
        """Return the last warnings and errors of federation in the logs of a and b, whose homes are removed."""
        filters = filters_of(["level=warning", "target=syncropel_engine::federation"])
        lines = {name: newest(str(self.home(name) / "logs"), FAULT_LINES, filters) for name in ("a", "b")}
        return [f"{name}: {line}" for name, found in lines.items() for line in found]

    # -- inside

    def _pair(self) -> str:
        """Pair a with b, in continuous mode on both sides."""
        pair_id = self._agreed("a", "b")
        for name in ("a", "b"):
            path = f"{PAIRS}/{quote(pair_id)}"
            self._ctls[name].post(f"{path}/mode", {"mode": "continuous"})
        return pair_id

    def _agreed(self, asking: str, asked: str, **more: object) -> str:
        """Return a new pair of two daemons.

        The request is approved by hand, as that is what lets the other side dial an address of this machine.
        """
        pair_id, approved = "", False
        for step in self._steps(asking, {"url": self.url(asked), "wait_ms": ASK_MS, **more}):
            pair_id = str(step.get("pair_id", pair_id))
            if pair_id and not approved and step["step"] == "waiting":
                self._ctls[asked].post(f"/v1/aitl/{quote(pair_id)}/decide", {"decision": "approve"})
                approved = True
            if step["step"] == "active":
                return pair_id
        raise CtlError("handshake-pending", "a request that was approved did not become a pair")

    def _steps(self, name: str, body: Mapping[str, object]) -> Any:
        """Yield the steps of a handshake; raise the refusal that ends it."""
        for step in self._ctls[name].lines(PAIRS, json.dumps(body).encode(), JSON, ASK_MS / 1000 + 10):
            if step["step"] == "error":
                raise refusal(step["error"])
            yield step

    def _digest(self, name: str, thread: str) -> tuple[int, str]:
        """Return (how many records a thread has, digest over their sorted ids)."""
        pieces = self._ctls[name].stream(f"/v1/threads/{quote(thread)}/snapshot")
        text = b""
        while b"\n" not in text and (piece := next(pieces, b"")):
            text += piece
        head = json.loads(text.partition(b"\n")[0])
        return int(head["count"]), str(head["digest"])
