"""Fuzzing texts: canonical JSON, cursors, manifests, expressions, snapshots."""

import json
from contextlib import suppress
from random import Random
from typing import Any

from spl.core import canon
from spl.core.cel.evaluate import STEPS_MAX, Budget, ExprError, evaluate
from spl.core.cel.grammar import parse
from spl.core.errors import CODES, SplError
from spl.core.identity import manifest
from spl.core.identity.did import Chain, did_of, rotate
from spl.core.keys import SecretKey, aead_seal, b64, box_public
from spl.core.limits import Limits
from spl.core.record import cursor as cursors
from spl.core.record import record, snapshot
from spl.core.record.cursor import Cursor, Lane, lane_key
from spl.core.record.snapshot import SnapshotError, SnapshotHeader

from .dice import changed, changed_value, pieces_of
from .target import Target

LIMITS = Limits()
NOW_MS = 1_764_000_000_000
FIRST, SECOND = SecretKey(b"1" * 32), SecretKey(b"2" * 32)


class Canon(Target):
    """Canonical JSON in both directions; Python's own decoder is the oracle of what is JSON at all."""

    name = "canon"
    words = (
        b'"',
        b"\\u0000",
        b"\\ud800",
        b"\\ud83d\\ude00",
        b"[",
        b"{",
        b"}",
        b"]",
        b",",
        b":",
        b"1e300",
        b"1.0",
        b"-0",
        b"NaN",
        b'"a":1,',
        b"\\/",
        b"\xe2\x80\xa8",
        b"\xc3",
        b"Infinity",
        b"[" * 3000,
        b'{"a":' * 3000,
        b" ",
        b"true",
    )

    def parse(self, data: bytes) -> None:
        with suppress(canon.CanonError):
            canon.encode(canon.decode(data))
        canon.decode_canonical(data)

    def check(self, data: bytes, dice: Random) -> None:
        try:
            value = canon.decode(data)
        except canon.CanonError as exc:
            assert exc.code == "bad-json"
            assert canon.decode_canonical(data) is None, "canonical, and not strict JSON"
            return
        json.loads(data)
        text = canon.encode(value)
        assert len(text) <= canon.GROWTH_FREE_DIGITS + (1 + canon.GROWTH_TIMES) * len(data)
        assert canon.encode(canon.decode(text)) == text, "encoding is not stable"
        if value is None:
            return  # the fast way says None for what is not canonical
        again = canon.decode_canonical(text)
        assert again is not None
        assert canon.encode(again) == text
        assert (canon.decode_canonical(data) is not None) == (text == data)


class Cursors(Target):
    """Cursors: nobody else's text opens, and what we sealed in whatever form has one code or reads back."""

    name = "cursor"
    words = (b"\0" * 8, b"\xff" * 8, b"\x01\x00", b"-", b"_", b"=", b"A" * 5000)
    key, nonce, pair = bytes(range(32)), bytes(24), "pair_a1b2c3d4"

    def corpus(self) -> list[bytes]:
        lanes = tuple(Lane(lane_key(f"n{n}"), 2**n % 2**63, n) for n in range(cursors.LANES_MAX))
        made = [Cursor("e" * 32, 7, "0" * 32, lanes[:count], whole=count == 1) for count in (0, 1, 9, 64)]
        return [*super().corpus(), *(cursors._pack(each) for each in made)]

    def parse(self, data: bytes) -> None:
        with suppress(cursors.CursorError):
            cursors.open_(aead_text(data), self.key, self.pair)
        with suppress(cursors.CursorError):
            cursors.open_(data.decode("latin-1"), self.key, self.pair)

    def check(self, data: bytes, dice: Random) -> None:
        for text in (data.decode("latin-1"), data.decode("utf-8", "replace")):
            assert self.opened(text, self.pair) is None, "a text that we never sealed opens"
        text = aead_text(data)
        assert self.opened(text, "pair_other") is None
        assert self.opened(text[:-2] + text[-2:].swapcase(), self.pair) is None or text[-2:].swapcase() == text[-2:]
        cursor = self.opened(text, self.pair)
        if cursor is not None and len(cursor.lanes) <= cursors.LANES_MAX:
            with suppress(AssertionError):  # a name longer than any that we write
                again = cursors.seal(cursor, self.key, self.nonce, self.pair)
                assert sorted(lane.key for lane in cursors.open_(again, self.key, self.pair).lanes) == sorted(
                    lane.key for lane in cursor.lanes
                ), again

    def opened(self, text: str, pair: str) -> Cursor | None:
        try:
            return cursors.open_(text, self.key, pair)
        except cursors.CursorError as exc:
            assert exc.code == "cursor-invalid"
            return None


def aead_text(packed: bytes) -> str:
    """Return the text that a seal of these bytes is."""
    sealed = aead_seal(Cursors.key, Cursors.nonce, packed, Cursors.pair.encode())
    return cursors.base64.urlsafe_b64encode(sealed).rstrip(b"=").decode()


class Manifests(Target):
    """Manifests: the right key signs odd members, so that each check behind the signature is met."""

    name = "manifest"
    steps = (60_000, 60)
    words = (
        b"null",
        b"true",
        b"[]",
        b"{}",
        b'"x"',
        b"1e400",
        b'"rotations":[],',
        b"\\ud800",
        b"https://",
        b"did:sync:instance:",
    )
    url = "https://bob.example"

    def corpus(self) -> list[bytes]:
        one = Chain(did_of("bob", FIRST.public), FIRST.public)
        two = rotate(one, FIRST, SECOND.public, "retired", NOW_MS - 86_400_000)
        made = [self.built(one, FIRST), self.built(two, SECOND)]
        return [*super().corpus(), *(canon.encode(each) for each in made)]

    def built(self, chain: Chain, key: SecretKey) -> dict[str, Any]:
        return manifest.build(
            chain,
            key,
            box_public(b"s" * 32),
            url=self.url,
            namespaces=["default"],
            version="1.0",
            now_ms=NOW_MS,
            limits=LIMITS,
        )

    def draw(self, corpus: "list[bytes]", dice: Random) -> bytes:
        if dice.random() < 0.3:
            return changed(corpus, self.words, dice)
        value = json.loads(dice.choice(corpus))
        body = value["federation_manifest"]
        key = SECOND if body["rotations"] else FIRST
        body = changed_value(body, dice)
        if isinstance(body, dict) and isinstance(body.get("signature"), dict):
            with suppress(canon.CanonError):
                body["signature"] = {**body["signature"], "signature": b64(key.sign(manifest._signed_text(body)))}
        with suppress(TypeError, KeyError):
            value = {**value, "signature": body["signature"], "did": body["daemon"]["did"]}
        return json.dumps({**value, "federation_manifest": body}).encode()

    def parse(self, data: bytes) -> None:
        with suppress(SplError):
            manifest.verify(data, data, now_ms=NOW_MS, strict=True, limits=LIMITS)

    def check(self, data: bytes, dice: Random) -> None:
        self.verified(data, data)
        found = self.verified(data, None)
        if found is not None:
            again = self.verified(canon.encode(manifest.document_of(found.raw)), None)
            assert again == found
            assert found.url.startswith(("http://", "https://"))
            document = canon.encode(manifest.did_document(found.chain, found.seal_key, found.url))
            assert self.verified(data, document) == found

    def verified(self, data: bytes, did_document: bytes | None) -> manifest.Manifest | None:
        try:
            return manifest.verify(data, did_document, now_ms=NOW_MS, strict=True, limits=LIMITS)
        except SplError as exc:
            assert exc.code in CODES
            return None


class Expressions(Target):
    """Rules: what parses is evaluated within the budget, and gives true, false or a code."""

    name = "expression"
    words = (
        *b"( ) [ ] { } . , : ? ! && || == != < <= > >= in - 1 0x7f 1.5 1e308 'x' r'\\' '\\u00e9'".split(),
        *b"true null has size exists in x all contains startsWith request".split(),
        *b"label items .size() .exists(i, i==1) 9223372036854775807".split(),
        *(b" ", b"!" * 2000, b"(" * 100, b".a" * 1500, b"a||" * 1000, b"?1:", b"[0]" * 500),
    )
    facts = {
        "request": {"label": "a\u00e9", "n": 3, "f": 0.5, "deep": [[["x"]]] * 3},
        "items": list(range(50)),
        "x": None,
    }

    def parse(self, data: bytes) -> None:
        with suppress(ExprError):
            evaluate(parse(data.decode("utf-8", "replace")), self.facts, Budget(2000))

    def check(self, data: bytes, dice: Random) -> None:
        text = data.decode("utf-8", "replace")
        try:
            expr = parse(text)
        except ExprError as exc:
            assert exc.code == "rule-syntax"
            return
        assert parse(text) == expr
        answers = []
        for steps in (STEPS_MAX, STEPS_MAX, 50):
            budget = Budget(steps)
            try:
                answers.append(str(evaluate(expr, self.facts, budget)))
                assert budget.left >= 0
            except ExprError as exc:
                assert exc.code in ("rule-type", "rule-cost")
                answers.append(exc.code)
        assert answers[0] == answers[1]
        assert answers[2] in (answers[0], "rule-cost")

    steps = (40_000, 60)


class Snapshots(Target):
    """Snapshots: whole text is refused as one, damaged text gives only records of their own id."""

    name = "snapshot"
    words = (b"\n", b'{"namespace":"a"}\n', b'{"namespace":', b'{"id":"', b"null", b'"count":', b"-v1", b"{}\n")
    steps = (4000, 30)

    def corpus(self) -> list[bytes]:
        envelopes = []
        for n in range(3):
            fields = record.check(
                {"act": "DO", "actor": "did:sync:user:a", "body": {"n": n}, "clock": n, "thread": "th"}, LIMITS
            )
            id_, text = record.identify(fields, LIMITS)
            sig = record.Sig("did:x", "zkey", FIRST.sign(record.signed_text(id_, None)))
            envelopes.append(record.seal(fields, id_, text, sig).raw)
        head = SnapshotHeader("did:x", "", 3, "0" * 64).encode()
        places = snapshot.placement("other")
        return [
            *super().corpus(),
            head + b"\n".join(envelopes) + b"\n",
            head + envelopes[0] + b"\n" + places + envelopes[1] + b"\n",
        ]

    def parse(self, data: bytes) -> None:
        with suppress(SnapshotError):
            list(snapshot.records([data], LIMITS))
        with suppress(SnapshotError):
            list(snapshot.sound(snapshot.cut([data]), LIMITS))

    def check(self, data: bytes, dice: Random) -> None:
        read = lines_of([data])
        assert lines_of(pieces_of(data, dice)) == read or len(data) > snapshot.LINE_BYTES_MAX
        assert b"\n".join(read) in (data, data.removesuffix(b"\n"))
        try:
            found = [each.raw for each in snapshot.records([data], LIMITS)]
        except SnapshotError as exc:
            assert exc.code == "snapshot-malformed"
            found = None
        sound = [(raw, ns) for _, raw, ns in snapshot.sound(iter(read[1:]), LIMITS)]
        for raw, _ in sound:
            assert not raw or record.parse(raw, LIMITS).raw == raw
        assert found is None or [raw for raw, _ in sound if raw] == found


def lines_of(pieces: list[bytes]) -> list[bytes]:
    """Return the lines of a text that arrives in pieces."""
    return list(snapshot.cut(pieces))
