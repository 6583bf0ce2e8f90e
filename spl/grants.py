"""Grants of the pairs, both sides: what our operator says, what a peer handed over, and what each is told of the other.

Our word is durable before the peer hears of it, the peer's before we answer.  A peer that tells older versions than
we hold had its home set back: it is shown its own last statement, which it signed, and takes its words from there.

Blocks on the disk; runs on the pairing service's thread.  Talking over the network is handover.py's.
"""

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from .core import consent, message, namespace, when
from .core.consent import Book, ConsentError, Grant
from .core.errors import SplError
from .core.handshake import HandshakeError
from .core.levels import NAMES
from .core.pair import ESTABLISHED, Pair, PairError
from .core.standing import Phase
from .hub import Own
from .pairs import Pairs

log = logging.getLogger("spl.federation")

STALE: Final = "consent-stale"
ROWS: Final = 500
_PURPOSES: Final = ("consent", "pair-answer")


class Grants:
    """All grants of all pairs."""

    def __init__(self, pairs: Pairs) -> None:
        self.pairs = pairs
        self.stale: Counter[str] = Counter()
        """Pair -> how many outdated statements of its peer were refused."""

    def book(self, pair: Pair) -> Book:
        """Return both sides' grants of a pair; any thread may ask."""
        return consent.book_of(self.pairs.hub.views.consents, pair)

    def standing(self, pair_id: str) -> Pair:
        """Return the pair while grants can be made and handed over.

        Raises PairError "pair-unknown", "pair-revoked", "pair-state-conflict".
        """
        pair = self.pairs.get(pair_id)
        if pair is None:
            raise PairError("pair-unknown", f"no pair {pair_id[:80]!r}")
        if pair.phase is Phase.REVOKED:
            raise PairError("pair-revoked", f"{pair_id} is revoked ({pair.reason})")
        if type(pair.state) not in ESTABLISHED:
            raise PairError("pair-state-conflict", f"{pair_id} is {pair.phase}: what is shared is not agreed yet")
        return pair

    # -- what our operator says

    def say(self, pair_id: str, name: str, maps: str, level: int | None) -> bool:
        """Write our word on a namespace, None withdraws it; return whether that is news.

        Raises ConsentError, PairError, NamespaceError "namespace-rejected".
        """
        pair = self.standing(pair_id)
        book = self.book(pair)
        if level is not None:
            namespace.usable(self.pairs.hub.views.namespaces, name)
        held = book.ours.get(name)
        if held is not None and (held.maps, held.level) == (maps, level):
            return False
        grant = consent.draft(pair, book, name, maps, level, self.pairs.limits)
        self._write(pair, [grant], held=False)
        self._tell_log("consent.withdrawn" if level is None else "consent.granted", pair, grant)
        return True

    def ours(self, pair: Pair) -> dict[str, object]:
        """Return {grants, held} for the peer: all our statements, and the versions that we hold of its own."""
        book = self.book(pair)
        return {"grants": consent.statements(book.ours.values()), "held": consent.versions(book.theirs)}

    # -- what the peer says

    def answer(self, pair: Pair, fields: Mapping[str, Any], value: object) -> dict[str, object]:
        """Return what we tell a peer of a pair that handed over its grants, in the message `value` of these fields.

        Raises HandshakeError "message-replayed", ConsentError "consent-stale" with its last statement as `evidence`.
        """
        until_ms = message.issued_at_ms(fields) + int(self.pairs.limits.nonce_memory_s * 1000)
        if not self.pairs.vault.remember_nonce(pair.peer_did, fields["nonce"], until_ms):
            raise HandshakeError("message-replayed")
        self.take(pair, fields, value)
        return self.ours(pair)

    def take(self, pair: Pair, fields: Mapping[str, Any], value: object) -> bool:
        """Keep what is new in the peer's verified statements and what it holds of ours; return whether it told news.

        Raises ConsentError "bad-field", "consent-stale".
        """
        self.adopt(pair, fields.get("evidence"))
        book = self.book(pair)
        known = consent.acknowledged(book, fields.get("held"))
        self._write(pair, known, held=True)
        for grant in known:
            self._tell_log("consent.handed_over", pair, grant)
        try:
            fresh = consent.news(book, fields.get("grants"), self.pairs.limits)
        except ConsentError as exc:
            if exc.code != STALE:
                raise
            self.stale[pair.pair_id] += 1
            told = {"pair": pair.pair_id, "count": self.stale[pair.pair_id], "msg": exc.message}
            log.warning("consent.stale", extra={"fields": told})
            raise ConsentError(STALE, exc.message, evidence=self._evidence(pair)) from exc
        at = when.text_of(self.pairs.now_ms())
        bodies: list[dict[str, Any]] = [
            {"pair_id": pair.pair_id, "grant": grant.to_json(), "at": at} for grant in fresh
        ]
        if bodies:
            # The message stands as evidence with the first; it holds all of the peer's grants of that time.
            bodies[0]["statement"] = value
            self.pairs.submit([Own(consent.THREAD, consent.KIND_PEER_GRANT, body) for body in bodies])
        for grant in fresh:
            self._tell_log("consent.received", pair, grant)
        return bool(fresh)

    def adopt(self, pair: Pair, evidence: object) -> bool:
        """Take back our own words that the peer holds and we lost, as after a restored home; return whether any were.

        Counted are only statements that one of our own keys signed, for this peer and this pair; a key that was told
        to be compromised signs for whoever has it.  Where our operator spoke since the loss, or may have, the word
        that gives less stands: what was withdrawn must not open again because an older word turns up.
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
            book, values = self.book(pair), fields.get("grants")
            said = [consent.read(value) for value in (values if isinstance(values, list) else [])]
        except SplError:
            return False
        lost, anew = list[Grant](), list[Grant]()
        for each in said:
            held = book.ours.get(each.namespace)
            if held is not None and (held == each or held.version > each.version):
                continue
            is_doubtful = held is not None and (held.version == each.version or each.namespace in book.waiting)
            if held is not None and is_doubtful and _narrowness(held) >= _narrowness(each):
                anew.append(replace(held, version=each.version + 1))
            elif held is not None and held.version == each.version:
                anew.append(replace(each, version=each.version + 1))
            else:
                lost.append(each)
        self._write(pair, lost, held=True)
        self._write(pair, anew, held=False)
        for grant in (*lost, *anew):
            self._tell_log("consent.recovered", pair, grant)
        return bool(lost or anew)

    # -- inside

    def _write(self, pair: Pair, grants: Sequence[Grant], *, held: bool) -> None:
        at = when.text_of(self.pairs.now_ms())
        bodies = [consent.said(pair.pair_id, grant, at, held=held) for grant in grants]
        if bodies:
            self.pairs.submit([Own(consent.THREAD, consent.KIND_GRANT, body) for body in bodies])

    def _evidence(self, pair: Pair) -> object:
        """Return the last statement of the peer that told us news, as it signed it; None where none stands here."""
        store, seq, found, name = self.pairs.hub.store, 0, None, pair.pair_id.encode()
        while rows := store.index.after(f"t:{consent.THREAD}", seq, ROWS):
            mine = [row for row in rows if row.kind == "rec" and row.voucher == self.pairs.identity.did]
            for payload in store.payloads(mine):
                if name in payload and b'"statement"' in payload:
                    body = json.loads(payload)["record"]["body"]
                    ours = body.get("kind") == consent.KIND_PEER_GRANT and body.get("pair_id") == pair.pair_id
                    found = body.get("statement") if ours else found
            seq = rows[-1].seq
        return found

    def _tell_log(self, event: str, pair: Pair, grant: Grant) -> None:
        level = consent.level_name(grant.level)
        fields = {"pair": pair.pair_id, "namespace": grant.namespace, "maps": grant.maps, "hash_level": level,
                  "version": grant.version}  # fmt: skip
        log.info(event, extra={"fields": fields})


def _narrowness(grant: Grant) -> int:
    """Return how little a grant gives: its level, and more than any for one that was withdrawn."""
    return len(NAMES) if grant.level is None else grant.level


def _is_signed(purpose: str, value: object, key: bytes) -> bool:
    try:
        message.verify(purpose, value, key)
    except SplError:
        return False
    return True
