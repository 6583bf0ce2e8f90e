"""Grants of the pairs, both sides: what our operator grants, what a peer grants, and how each side hands over its own.

Our grant is durable before the peer learns of it, the peer's before we answer.  A peer that states older versions than
we hold had its home rolled back: we show it its own last statement, which it signed, and it restores its grants.

`Grants` blocks on the disk and runs on the thread of the steps; `Handover` speaks to the peers.  Each side hands over
all its grants whenever the other lacks one, which the versions in each view show; rejected: a queue of changes, which
would have to survive restarts, rollbacks and lost answers on both sides.
"""

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

from ..core import consent, when
from ..core.backoff import Backoff, Buckets
from ..core.consent import ConsentError, Grant, PairGrants
from ..core.errors import SplError, cli_code
from ..core.event import event
from ..core.identity import message
from ..core.limits import KIB
from ..core.pair.handshake import HandshakeError
from ..core.pair.pair import ESTABLISHED, Pair, PairError
from ..core.pair.state import Phase
from ..core.record import namespace
from ..core.record.levels import NAMES
from ..core.value import Json, dataclass, field, replace
from ..home.logs import CountedLog
from ..home.writes import Own, size_of
from ..sync.budget import INTAKE_PAUSED
from .budgets import LEVELS_EVIDENCE
from .handshake_loop import HandshakeLoop
from .initiator import Initiator
from .machine import Pairs
from .responder import SERVER_FAULT, Reaction, Responder
from .stepper import Stepper

log = logging.getLogger("spl.federation")

STALE: Final = "consent-stale"
RATE_LIMITED: Final = "rate-limited"
RECEIVED_BYTES_MAX: Final = 1024 * KIB  # see RECEIVED_BYTES_S
RECEIVED_BYTES_S: Final = 128.0
"""What a peer's grants may append at once, and over time: 11 MB a day.  All 64 grants changed at once take 90 KiB."""
TELL_TIMEOUT_S: Final = 5.0
ROUNDS_MAX: Final = 3
"""One to hand over, one to confirm what we then hold, one to begin again if a home was rolled back."""
PAUSE_MS: Final = 1000
BACKOFF_BASE_S: Final = 2.0
BACKOFF_MAX_S: Final = 300.0
_AGREED: Final = frozenset({"active", "paused"})
_PURPOSES: Final = ("consent", "pair-answer")


class Grants:
    """All grants of all pairs."""

    def __init__(self, pairs: Pairs, responder: Responder) -> None:
        self.pairs, self._responder = pairs, responder
        self._received = Buckets(RECEIVED_BYTES_MAX, RECEIVED_BYTES_S, pairs.limits.pairs_count)
        self._lines = CountedLog(log)
        self.stale: Counter[str] = Counter()
        """Pair -> how many outdated statements of its peer were refused."""

    def of(self, pair: Pair) -> PairGrants:
        """Return both sides' grants of a pair; any thread may ask."""
        return consent.grants_of(self.pairs.writer.views.consents, pair)

    def agreed(self, pair_id: str) -> Pair:
        """Return the pair while grants can be made and handed over.

        Raises PairError "pair-unknown", "pair-revoked", "pair-state-conflict".
        """
        pair = self.pairs.known(pair_id)
        if pair.phase is Phase.REVOKED:
            raise PairError("pair-revoked", f"{pair_id} is revoked ({pair.reason})")
        if type(pair.state) not in ESTABLISHED:
            raise PairError("pair-state-conflict", f"{pair_id} is {pair.phase}: what is shared is not agreed yet")
        return pair

    # -- what our operator says

    def set_grant(self, pair_id: str, name: str, maps: str, level: int | None) -> bool:
        """Grant a namespace at a level, None withdraws it; return whether that changes anything.

        Raises ConsentError, PairError, NamespaceError "namespace-rejected".
        """
        pair = self.agreed(pair_id)
        grants = self.of(pair)
        if level is not None:
            namespace.usable(self.pairs.writer.views.namespaces, name)
        held = grants.ours.get(name)
        if held is not None and (held.maps, held.level) == (maps, level):
            return False
        grant = consent.draft(pair, grants, name, maps, level, self.pairs.limits)
        self._write(pair, [grant], held=False)
        self._tell_log("consent.withdrawn" if level is None else "consent.granted", pair, grant)
        return True

    def ours(self, pair: Pair) -> Json:
        """Return {grants, held} for the peer: all our statements, and the versions that we hold of its own."""
        grants = self.of(pair)
        return {"grants": consent.statements(grants.ours.values()), "held": consent.versions(grants.theirs)}

    # -- what the peer says

    def receive(self, pair_id: str, body: bytes, address: str) -> Reaction:
        """Return the answer to the peer's grants, which holds ours; also while paused or degraded."""
        heard = self._responder.hear("consent", pair_id, body, address, levels_max=LEVELS_EVIDENCE)
        pair, fields = heard.pair, heard.fields
        if pair is None:
            return Reaction(self._responder.unknown(fields))
        if pair.ended:
            return Reaction(self._responder.ended(fields, pair))
        if type(pair.state) not in ESTABLISHED:
            return Reaction(self._responder.status(fields, pair))
        try:
            ours = self.answer(pair, fields, heard.value)
            return Reaction(self._responder.status(fields, pair, grants=ours["grants"], held=ours["held"]))
        except SplError as exc:
            if exc.status >= SERVER_FAULT or exc.code in (RATE_LIMITED, INTAKE_PAUSED):
                raise  # this says nothing about the grants: the peer hands them over again
            return Reaction(self._responder.refusal(fields, exc))

    def answer(self, pair: Pair, fields: Mapping[str, Any], value: object) -> Json:
        """Return what we answer to a peer that handed over its grants, in the message `value` of these fields.

        Raises HandshakeError "message-replayed", ConsentError "consent-stale" with its last statement as `evidence`.
        """
        until_ms = message.issued_at_ms(fields) + int(self.pairs.limits.nonce_memory_s * 1000)
        if not self.pairs.vault.remember_nonce(pair.peer_did, fields["nonce"], until_ms):
            raise HandshakeError("message-replayed")
        self.take(pair, fields, value)
        return self.ours(pair)

    def take(self, pair: Pair, fields: Mapping[str, Any], value: object) -> bool:
        """Store what is new in the peer's verified statements, and what it holds of ours; return whether any was new.

        What is stored of it counts as brought in.  Raises ConsentError "bad-field", "consent-stale", HandshakeError
        "rate-limited", IntakeError "intake-paused".
        """
        self.pairs.budget.check(pair.pair_id)
        self.adopt(pair, fields.get("evidence"))
        grants = self.of(pair)
        known = consent.acknowledged(grants, fields.get("held"))
        self._write(pair, known, held=True, brought=True)
        for grant in known:
            self._tell_log("consent.handed_over", pair, grant)
        try:
            fresh = consent.news(grants, fields.get("grants"), self.pairs.limits)
        except ConsentError as exc:
            if exc.code != STALE:
                raise
            self.stale[pair.pair_id] += 1
            self._lines.warning("consent.stale", pair.pair_id, count=self.stale[pair.pair_id], msg=exc.message)
            raise ConsentError(STALE, exc.message, evidence=self._evidence(pair)) from exc
        if fresh:
            self._store(pair, fresh, value)
        return bool(fresh)

    def adopt(self, pair: Pair, evidence: object) -> bool:
        """Restore grants of ours that the peer holds and we lost, as after a restored home; return whether any were.

        Only statements count that one of our own keys signed, for this peer and this pair, and no compromised one: it
        signs for any thief.  If our operator changed the grant since the loss, or may have, the one that gives less
        stands: what was withdrawn must not open again because an older grant turns up.
        """
        if evidence is None:
            return False
        own = self.pairs.identity
        try:
            fields = message.unwrap(evidence)
            if (fields["signer"], fields["audience"], fields["pair_id"]) != (own.did, pair.peer_did, pair.pair_id):
                return False
            lost_keys = {each.old for each in own.chain.rotations if each.reason == "compromised"}
            keys = [key for key in own.chain.keys if key not in lost_keys]
            if not any(_is_signed(purpose, evidence, key) for purpose in _PURPOSES for key in keys):
                return False
            grants, values = self.of(pair), fields.get("grants")
            said = [consent.read(value) for value in (values if isinstance(values, list) else [])]
        except SplError:
            return False
        lost, raised = list[Grant](), list[Grant]()
        for each in said:
            held = grants.ours.get(each.namespace)
            if held is not None and (held == each or held.version > each.version):
                continue
            is_doubtful = held is not None and (held.version == each.version or each.namespace in grants.waiting)
            if held is not None and is_doubtful and _narrowness(held) >= _narrowness(each):
                raised.append(replace(held, version=each.version + 1))
            elif held is not None and held.version == each.version:
                raised.append(replace(each, version=each.version + 1))
            else:
                lost.append(each)
        self._write(pair, lost, held=True, brought=True)
        self._write(pair, raised, held=False, brought=True)
        for grant in (*lost, *raised):
            self._tell_log("consent.recovered", pair, grant)
        return bool(lost or raised)

    # -- inside

    def _store(self, pair: Pair, fresh: Sequence[Grant], statement: object) -> None:
        """Store what is new in the peer's statement, which stands as evidence with the first of its grants."""
        at = when.text_of(self.pairs.now_ms())
        bodies: list[dict[str, Any]] = [{"pair_id": pair.pair_id, "grant": each.to_json(), "at": at} for each in fresh]
        bodies[0]["statement"] = statement
        items = [Own(consent.THREAD, consent.KIND_PEER_GRANT, body) for body in bodies]
        size = min(RECEIVED_BYTES_MAX, sum(map(size_of, items)))
        wait_s = self._received.take(pair.peer_did, self.pairs.steady_ms() / 1000, size)
        if wait_s:
            raise HandshakeError(RATE_LIMITED, "too many changes of grants", retry_after_s=int(wait_s) + 1)
        self.pairs.submit(items, brought_by=pair.pair_id)
        self._lines.info("consent.received", pair.pair_id, "", grants=len(fresh), **_fields_of(fresh[0]))

    def _write(self, pair: Pair, grants: Sequence[Grant], *, held: bool, brought: bool = False) -> None:
        at = when.text_of(self.pairs.now_ms())
        bodies = [consent.grant_body(pair.pair_id, grant, at, held=held) for grant in grants]
        if bodies:
            items = [Own(consent.THREAD, consent.KIND_GRANT, body) for body in bodies]
            self.pairs.submit(items, brought_by=pair.pair_id if brought else "")

    def _evidence(self, pair: Pair) -> object:
        """Return the last statement of the peer that was news, as it signed it; None if none is stored here.

        One line is read.  Reading the thread instead cost 0.02 ms a record, on the thread that all steps share.
        """
        store, seq = self.pairs.writer.store, self.pairs.writer.views.statements.get(pair.pair_id)
        rows = store.index.rows([seq]) if seq is not None else []
        return next((json.loads(payload)["record"]["body"]["statement"] for payload in store.payloads(rows)), None)

    def _tell_log(self, name: str, pair: Pair, grant: Grant) -> None:
        log.info(**event(name, pair=pair.pair_id, **_fields_of(grant)))


def _fields_of(grant: Grant) -> Json:
    """Return a grant as the fields of a log line."""
    level = consent.level_name(grant.level)
    return {"namespace": grant.namespace, "maps": grant.maps, "hash_level": level, "version": grant.version}


def _narrowness(grant: Grant) -> int:
    """Return how little a grant gives: its level, and more than any for one that was withdrawn."""
    return len(NAMES) if grant.level is None else grant.level


def _is_signed(purpose: str, value: object, key: bytes) -> bool:
    try:
        message.verify(purpose, value, key)
    except SplError:
        return False
    return True


@dataclass(slots=True)
class _HandoverState:
    """What this process remembers of one pair."""

    backoff: Backoff
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    seen: int = 0
    """The weight of the peer's grants in its last view."""
    asked: int = 0
    """That weight when we last asked; one that stays ahead of what it hands over is not asked for again."""
    folded: PairGrants | None = None
    """The stored grants that the next two were computed from."""
    waiting: bool = False
    weight_held: int = 0


class Handover:
    """Hands over the grants of all pairs."""

    def __init__(self, grants: Grants, initiator: Initiator, handshakes: HandshakeLoop, stepper: Stepper) -> None:
        self.grants, self.pairs = grants, grants.pairs
        self._initiator, self._handshakes, self._stepper = initiator, handshakes, stepper
        self._states: dict[str, _HandoverState] = {}
        self._lines = CountedLog(log)
        """A peer that counts other grants in each view is asked for them once a second."""

    # -- what our operator asks

    async def set_grant(self, pair_id: str, name: str, maps: str, level: int | None) -> tuple[bool, str]:
        """Grant a namespace or withdraw it, and hand that over within 5 s if the peer can be reached.

        Returns (whether it changes anything, why it could not be handed over yet: a code, or "").  Raises as
        `Grants.set_grant`.
        """
        news = await self._stepper.do(self.grants.set_grant, pair_id, name, maps, level)
        if not self.grants.of(self.grants.agreed(pair_id)).waiting:
            return news, ""
        try:
            async with asyncio.timeout(TELL_TIMEOUT_S):
                await self.exchange(pair_id)
                # If our home was rolled back, the exchange brought older statements of ours; this one came after them.
                if await self._stepper.do(self.grants.set_grant, pair_id, name, maps, level):
                    await self.exchange(pair_id)
        except (SplError, TimeoutError) as exc:
            self._stepper.notify()
            return news, exc.code if isinstance(exc, SplError) else "timeout"
        return news, ""

    # -- by itself

    def seen(self, pair_id: str, view: Mapping[str, Any]) -> None:
        """Record the peer's view of a pair; if it counts grants that we lack, ask for them."""
        pair = self.pairs.get(pair_id)
        # A paused pair's view has no `head` and is incomplete; a count of another type is forged.
        weight = view.get("consent", 0)
        if "head" not in view or type(weight) is not int or pair is None:
            return
        if self.grants.of(pair).weight_held == weight:
            return
        state = self._state(pair_id)
        if weight not in (state.seen, state.asked):
            state.seen = weight
            state.backoff.reset()
            state.backoff.retry_ms = min(state.backoff.retry_ms, self.pairs.steady_ms() + PAUSE_MS)
            self._stepper.notify()

    def due(self) -> list[str]:
        """Return the pairs to hand over now; each is named once, and again after a pause."""
        now_ms = self.pairs.steady_ms()
        found = [pair.pair_id for pair in self._behind() if self._state(pair.pair_id).backoff.retry_ms <= now_ms]
        for pair_id in found:
            self._state(pair_id).backoff.retry_ms = now_ms + PAUSE_MS
        return found

    def next_s(self) -> float:
        """Return the seconds until a pair is due next, as things stand; infinite if there is none."""
        times = [self._state(pair.pair_id).backoff.retry_ms for pair in self._behind()]
        return max(0.0, (min(times) - self.pairs.steady_ms()) / 1000) if times else float("inf")

    async def maintain(self, pair_id: str) -> None:
        """Bring both sides of a pair up to date if one is behind; what goes wrong is tried again later."""
        state, pair = self._state(pair_id), self.pairs.get(pair_id)
        if pair is None or not self._lacks(pair):
            return
        try:
            await self.exchange(pair_id)
        except SplError as exc:
            state.backoff.failed(self.pairs.steady_ms(), PAUSE_MS)
            attempt = state.backoff.attempt
            self._lines.info("consent.not_handed_over", pair_id, exc.code, attempt=attempt, msg=exc.message)
        self._stepper.notify()

    async def exchange(self, pair_id: str) -> None:
        """Send the peer our grants and store its own, until each side holds the other's.

        Raises ReachError, MessageError, ConsentError, HandshakeError, PairError.
        """
        state = self._state(pair_id)
        async with state.lock:
            evidence, seen = None, state.seen
            for _ in range(ROUNDS_MAX):
                pair = self.grants.agreed(pair_id)
                more: Json = {"evidence": evidence} if evidence is not None else {}
                said = {**self.grants.ours(pair), **more}
                request = await self._stepper.do(partial(self._initiator.request_for, pair, "consent", **said))
                fields, value = await self._handshakes.exchange.send_for_whole(pair, request)
                again, evidence = await self._take(pair_id, fields, value)
                if not again:
                    break
            state.backoff.reset()
            state.asked = seen

    # -- inside

    async def _take(self, pair_id: str, fields: dict[str, Any], value: object) -> tuple[bool, object]:
        """Return (whether to send once more, with which evidence) after the peer's signed answer."""
        pair = self.grants.agreed(pair_id)
        if fields["state"] == "refused":
            code = cli_code(str(fields.get("code", "")))
            if code == STALE and await self._stepper.do(self.grants.adopt, pair, fields.get("evidence")):
                return True, None
            raise HandshakeError(code if code == STALE else "message-malformed", "the peer refuses our grants")
        if fields["state"] not in _AGREED:
            await self._handshakes.ask(pair_id, poll=True)
            self.grants.agreed(pair_id)
            raise HandshakeError("pair-state-conflict", f"the pair is {fields['state'][:40]} at the peer")
        try:
            return await self._stepper.do(self.grants.take, pair, fields, value), None
        except SplError as exc:
            if exc.code != STALE or exc.facts["evidence"] is None:
                raise
            return True, exc.facts["evidence"]

    def _behind(self) -> list[Pair]:
        """Return the pairs one of whose sides lacks grants of the other."""
        return [pair for pair in self.pairs.all() if self._lacks(pair)]

    def _lacks(self, pair: Pair) -> bool:
        """Return whether one side lacks grants of the other; asked of all pairs at each change of one."""
        if type(pair.state) not in ESTABLISHED:
            return False
        state = self._state(pair.pair_id)
        if state.lock.locked():
            return False
        folded = self.pairs.writer.views.consents.get(pair.pair_id)
        # An agreed pair's maps stay, so the same stored grants give the same result.
        if folded is None or folded is not state.folded:
            grants = self.grants.of(pair)
            state.folded, state.waiting, state.weight_held = folded, bool(grants.waiting), grants.weight_held
        return state.waiting or state.seen not in (state.asked, state.weight_held)

    def _state(self, pair_id: str) -> _HandoverState:
        if pair_id not in self._states:
            self._states[pair_id] = _HandoverState(Backoff(self.pairs.random_bytes, BACKOFF_BASE_S, BACKOFF_MAX_S))
        return self._states[pair_id]
