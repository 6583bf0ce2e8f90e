"""The signed manifest and the DID document: what an instance publishes about itself.

`/.well-known/syncropel` is `{did, pair_endpoint, signature, federation_manifest}`; the first three repeat members of
the last, for people with curl.  The signature is Ed25519 by the present key over the canonical JSON of
`federation_manifest` whose `signature` member keeps alg, key_id, signed_at and expires_at and lacks only `signature`
itself, so the validity is covered too.  Members we do not know are tolerated and covered.

`/.well-known/did.json` (W3C DID Core 1.0, Multikey of Controlled Identifiers 1.0) is unsigned; it must agree.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from .. import canon, keys, when
from ..errors import SplError
from ..keys import KeyFault, SecretKey
from ..limits import KIB, Limits
from ..value import dataclass, field, replace
from ..version import PROTOCOL
from .did import Chain, DidError, certifies, chain_of, is_instance_did, key_of, multibase, short_of, words
from .pins import STALE, grown

MANIFEST_VERSION: Final = 1
PAIR_PATH: Final = "/v1/federation/pair"
CHANGES_PATH: Final = "/v1/sync/changes"
RECORDS_PATH: Final = "/v1/sync/records"
CAPABILITIES: Final = ("batch-signatures", "longpoll", "sealed-tokens", "token-proof")
SIGNATURE_FAILED: Final = "manifest signature does not verify against advertised DID"
ALGORITHM: Final = "Ed25519"
CLOCK_SKEW_MS: Final = 300_000
MANIFEST_BYTES: Final = 8 * KIB
"""Of a manifest without its rotations, unknown members included.  No limit of the configuration: a lower one would
refuse honest peers, a higher one lets a stranger's request weigh more.  Rotations have a bound of their own."""
SIGNATURE_CHARS: Final = 128
"""Room for the member that is added last: 64 bytes in base64, and its name."""
TEXT_CHARS: Final = 2048
"""Of each text, as both sides check it."""
CAPABILITIES_MAX: Final = 64
"""As both sides check it; ours has fewer than ten."""

_ORIGIN: Final = re.compile(
    r"https?://[a-z0-9._-]{0,252}[a-z0-9_-](?::[0-9]{1,5})?\Z|https?://\[[0-9a-f:.]{2,45}\](?::[0-9]{1,5})?\Z"
)


class ManifestError(SplError):
    """A manifest that is malformed, forged, stale, or of another instance.

    Codes: manifest-malformed, manifest-signature, manifest-did-mismatch, manifest-expired, manifest-stale,
    peer-version; did-invalid, chain-broken and chain-fork of the key chain.
    """


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest whose form, chain and signature hold; `url` is the public base URL without trailing slash."""

    did: str
    chain: Chain
    public_key: bytes
    seal_key: bytes
    url: str
    namespaces: tuple[str, ...] | None
    """The namespaces it advertises; None if it names none."""
    version: str
    protocol_min: int
    protocol_max: int
    signed_at_ms: int
    expires_at_ms: int
    text: bytes = field(repr=False)
    """The `federation_manifest` itself in canonical form: a quarter of what it takes decoded, and each pair has one."""

    @property
    def pair_endpoint(self) -> str:
        """Where its pairs are asked for; "" without a URL."""
        return self.url + PAIR_PATH if self.url else ""

    @property
    def raw(self) -> dict[str, Any]:
        """The `federation_manifest`, decoded each time, for snapshots and messages; {} of one that was dropped."""
        value: dict[str, Any] = json.loads(self.text or b"{}")
        return value


def claimed_key(value: object, did: str) -> bytes:
    """Return the key that a decoded `federation_manifest` claims as present, once `did` certifies its first key.

    Cheap: no statement of the chain is verified, so a message under this key can be refused before any of that.
    Raises ManifestError "manifest-malformed", "did-invalid".
    """
    body = _member({"federation_manifest": value}, "federation_manifest")
    present, rotations = _key(body, "public_key", "ed25519"), body.get("rotations")
    if not isinstance(rotations, list):
        raise ManifestError("manifest-malformed", "rotations is a list")
    first = _key(_member({"rotation": rotations[0]}, "rotation"), "from", "ed25519") if rotations else present
    if not certifies(did, first):
        raise ManifestError("did-invalid", f"{did[:80]} does not certify the first key of the manifest")
    return present


def build(
    chain: Chain,
    key: SecretKey,
    seal_key: bytes,
    *,
    url: str,
    namespaces: Sequence[str] | None,
    version: str,
    now_ms: int,
    limits: Limits,
) -> dict[str, Any]:
    """Return the document for `/.well-known/syncropel`, signed now and valid for limits.manifest_ttl_s.

    `url` is the public origin without trailing slash, `seal_key` the X25519 public key.  The caller sees to it that
    `now_ms` is above that of every manifest it signed before.
    """
    assert key.public == chain.present
    body: dict[str, Any] = {
        "manifest_version": MANIFEST_VERSION,
        "daemon": {"did": chain.did, "version": version, "federation_protocol_version": PROTOCOL},
        "public_key": multibase(chain.present),
        "rotations": [step.to_json() for step in chain.rotations],
        "seal_key": multibase(seal_key, "x25519"),
        "federation": {
            "enabled": True,
            "pair_endpoint": url + PAIR_PATH,
            "sync_change_endpoint": url + CHANGES_PATH,
            "sync_record_endpoint": url + RECORDS_PATH,
        },
        "advertises": {} if namespaces is None else {"namespaces": sorted(namespaces)},
        "capabilities": sorted(CAPABILITIES),
        "signature": {
            "alg": ALGORITHM,
            "key_id": f"{chain.did}#{multibase(chain.present)}",
            "signed_at": when.text_of(now_ms),
            "expires_at": when.text_of(now_ms + int(limits.manifest_ttl_s * 1000)),
        },
    }
    if len(canon.encode({**body, "rotations": []})) > MANIFEST_BYTES - SIGNATURE_CHARS:
        # Many long names: peers learn the namespaces from the pair request, so the list can be left out.
        body["advertises"] = {}
    body["signature"]["signature"] = keys.b64(key.sign(_signed_text(body)))
    return document_of(body)


def document_of(federation_manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the served document around a federation_manifest."""
    return {
        "did": federation_manifest["daemon"]["did"],
        "pair_endpoint": federation_manifest["federation"]["pair_endpoint"],
        "signature": federation_manifest["signature"],
        "federation_manifest": dict(federation_manifest),
    }


def did_document(chain: Chain, seal_key: bytes, url: str) -> dict[str, Any]:
    """Return the W3C DID document: all keys of the chain, retired ones with the time, and the present one in use."""
    retired = {step.old: when.text_of(step.at_ms) for step in chain.rotations}
    methods = []
    for key in chain.keys:
        method = _method(chain.did, multibase(key))
        methods.append({**method, "revoked": retired[key]} if key in retired else method)
    present = f"{chain.did}#{multibase(chain.present)}"
    return {
        "@context": ["https://www.w3.org/ns/did/v1", "https://w3id.org/security/multikey/v1"],
        "id": chain.did,
        "verificationMethod": methods,
        "authentication": [present],
        "assertionMethod": [present],
        "keyAgreement": [_method(chain.did, multibase(seal_key, "x25519"))],
        "service": [{"id": f"{chain.did}#syncropel", "type": "syncropel", "serviceEndpoint": url}],
        "rotations": [step.to_json() for step in chain.rotations],
    }


def verify(
    document: bytes,
    did_document_text: bytes | None,
    *,
    now_ms: int,
    strict: bool,
    limits: Limits,
    expect_did: str = "",
    expect_key: str = "",
    pinned: Chain | None = None,
    newer_than_ms: int = 0,
) -> Manifest:
    """Return the manifest of a fetched document once everything about it holds.

    Checked in this order: form, agreement with the DID document (where one is given), key chain, signature by the
    chain's present key, then what `judge` checks.  Raises ManifestError.
    """
    body = _opened(document, limits)
    if did_document_text is not None:
        _agree(body, did_document_text, limits)
    return judge(
        from_json(body, limits),
        now_ms=now_ms,
        strict=strict,
        expect_did=expect_did,
        expect_key=expect_key,
        pinned=pinned,
        newer_than_ms=newer_than_ms,
    )


def from_json(value: object, limits: Limits, size_max: int = MANIFEST_BYTES) -> Manifest:
    """Return the manifest of a decoded `federation_manifest` whose form, chain and signature hold.

    For the copies inside handshake messages and pair records; `judge` checks pins, age and protocol.  `size_max` is
    the bound in bytes, in canonical form and without the rotations.
    """
    manifest, raw = _formed(value, limits, size_max)
    signature = raw["signature"]
    chain = _chained(manifest, raw.get("rotations"), limits)
    if signature["key_id"] != f"{manifest.did}#{multibase(chain.present)}":
        raise _forged("key_id is not the present key of the DID")
    try:
        held = keys.verify(chain.present, _signed_text(raw), keys.unb64(signature["signature"], 64))
    except KeyFault as exc:
        raise _forged("the signature is not base64") from exc
    if not held:
        raise _forged("the signature is not by the present key of the DID")
    return replace(manifest, chain=chain)


def judge(
    manifest: Manifest,
    *,
    now_ms: int,
    strict: bool,
    expect_did: str = "",
    expect_key: str = "",
    pinned: Chain | None = None,
    newer_than_ms: int = 0,
) -> Manifest:
    """Return the manifest if it is the expected one and usable now.

    `expect_did` is a DID with or without its hash, `expect_key` multibase or six words.  `pinned` is the chain seen
    before: this one must equal or extend it.  Signed before `newer_than_ms` is stale, unless that time `is_ahead`.
    `strict=False` skips the expiry and clock checks and nothing else.  Raises ManifestError.
    """
    if expect_did and expect_did not in (manifest.did, short_of(manifest.did)):
        raise ManifestError("manifest-did-mismatch", f"the peer is {manifest.did}, not {expect_did[:80]}")
    if expect_key and not _names_key(expect_key, manifest.public_key):
        raise ManifestError(
            "manifest-did-mismatch", f"the peer's key is {words(manifest.public_key)}, not the pinned one"
        )
    if pinned is not None:
        try:
            grown(pinned, manifest.chain)
        except DidError as exc:
            raise ManifestError(exc.code, exc.message) from exc
    if manifest.signed_at_ms < newer_than_ms and not is_ahead(newer_than_ms, now_ms):
        signed = when.text_of(manifest.signed_at_ms)
        raise ManifestError(STALE, f"signed {signed}, before the one accepted last", signed_at=signed)
    if not manifest.protocol_min <= PROTOCOL <= manifest.protocol_max:
        peer = f"{manifest.protocol_min}..{manifest.protocol_max}"
        raise ManifestError("peer-version", f"we speak protocol {PROTOCOL}..{PROTOCOL}, the peer {peer}")
    if strict:
        _timely(manifest, now_ms)
    return manifest


def is_ahead(signed_at_ms: int, now_ms: int) -> bool:
    """Return whether a manifest was signed by a clock that ran ahead, so that later ones may have an earlier date.

    Else one start with a wrong clock would shut an instance out until that time comes.  Its owner dates the next one
    by the right clock, and a peer that kept the early one takes it: an early date is no floor.  What an old manifest
    could bring back meanwhile is an address and the list of namespaces; the key chain still only grows.
    """
    return signed_at_ms > now_ms + CLOCK_SKEW_MS


def says_more(manifest: Manifest, before: Manifest, now_ms: int) -> bool:
    """Return whether a newer manifest is worth a record.

    It is if it says something else, or if the one kept is half used up or dated ahead.  Peers sign theirs again at
    each start; that alone changes nothing.
    """
    said, had = (
        {name: value for name, value in each.raw.items() if name != "signature"} for each in (manifest, before)
    )
    if said != had or is_ahead(before.signed_at_ms, now_ms) > is_ahead(manifest.signed_at_ms, now_ms):
        return True
    aged = 2 * now_ms > before.signed_at_ms + before.expires_at_ms
    return aged and manifest.signed_at_ms > before.signed_at_ms


def _timely(manifest: Manifest, now_ms: int) -> None:
    signed, expires, now = (when.text_of(ms) for ms in (manifest.signed_at_ms, manifest.expires_at_ms, now_ms))
    if is_ahead(manifest.signed_at_ms, now_ms):
        text = f"the manifest is from the future: it was signed {signed}, our clock says {now}"
        raise ManifestError("manifest-expired", text, signed_at=signed, time=now)
    if now_ms >= manifest.expires_at_ms:
        raise ManifestError("manifest-expired", f"the manifest expired {expires}", expires_at=expires, time=now)


def _opened(document: bytes, limits: Limits) -> dict[str, Any]:
    """Return the federation_manifest of a served document whose outer members repeat the inner ones."""
    if len(document) > limits.manifest_bytes:
        raise ManifestError("manifest-malformed", f"the manifest is over {limits.manifest_bytes} bytes")
    outer = _object(document, "the manifest")
    manifest, body = _formed(outer.get("federation_manifest"), limits)
    if outer.get("did") != manifest.did:
        raise _mismatch("did differs outside and inside the manifest")
    for name, inner in (("pair_endpoint", body["federation"]["pair_endpoint"]), ("signature", body["signature"])):
        if outer.get(name) != inner:
            raise _forged(f"{name} differs outside and inside the manifest")
    return body


def _agree(body: dict[str, Any], text: bytes, limits: Limits) -> None:
    """Raise unless the DID document names the manifest's DID, its keys and its seal key."""
    if len(text) > limits.manifest_bytes:
        raise ManifestError("manifest-malformed", f"the DID document is over {limits.manifest_bytes} bytes")
    found = _object(text, "the DID document")
    did, present = body["daemon"]["did"], body["public_key"]
    if found.get("id") != did:
        raise _mismatch(
            "the DID document at the peer is that of another DID", document=str(found.get("id"))[:120], manifest=did
        )
    steps = [step for step in body["rotations"] if isinstance(step, dict)]
    listed = {present, *(step["from"] for step in steps if isinstance(step.get("from"), str))}
    used = [f"{did}#{present}"]
    methods = (found.get("verificationMethod"), found.get("assertionMethod"), found.get("authentication"))
    if (_keys_of(methods[0]), *methods[1:]) != (listed, used, used):
        raise _forged(
            "the DID document names other keys than the manifest: the peer rotated its identity and still "
            "serves the old one of the two",
            manifest=f"{did}, key {words(key_of(present))}",
            document=f"{did}, key {_key_words(methods[1])}",
        )
    if _keys_of(found.get("keyAgreement")) != {body["seal_key"]}:
        raise _forged("the DID document names another seal key than the manifest")


def _keys_of(methods: object) -> set[object]:
    """Return the multibase texts in a list of verification methods; what has another form counts as None."""
    if not isinstance(methods, list):
        return set()
    texts = (item.get("publicKeyMultibase") if isinstance(item, dict) else None for item in methods)
    return {text if isinstance(text, str) else None for text in texts}


def _key_words(used: object) -> str:
    """Return the words of the key that a DID document uses to sign, as far as it can be read."""
    try:
        return words(
            key_of(used[0].rpartition("#")[2] if isinstance(used, list) and isinstance(used[0], str) else None)
        )
    except (DidError, IndexError):
        return "unreadable"


def _formed(value: object, limits: Limits, size_max: int = MANIFEST_BYTES) -> tuple[Manifest, dict[str, Any]]:
    """Return the manifest of a value of the right form, and the value.

    Its chain is only the present key, and nothing is verified.
    """
    body = _member({"federation_manifest": value}, "federation_manifest")
    version, rotations = body.get("manifest_version"), body.get("rotations")
    if type(version) is not int or version < MANIFEST_VERSION:
        raise ManifestError("manifest-malformed", "manifest_version is a number from 1")
    if version > MANIFEST_VERSION:
        raise ManifestError("peer-version", f"the manifest is of version {str(version)[:20]}")
    if not isinstance(rotations, list) or len(rotations) > limits.chain_links:
        raise ManifestError("manifest-malformed", f"rotations is a list of at most {limits.chain_links} statements")
    if len(canon.encode({**body, "rotations": []})) > size_max:
        raise ManifestError("manifest-malformed", f"the manifest is over {size_max} bytes")
    daemon, federation, signature = (_member(body, name) for name in ("daemon", "federation", "signature"))
    did, present = daemon.get("did"), _key(body, "public_key", "ed25519")
    if not isinstance(did, str) or not is_instance_did(did):
        raise ManifestError("did-invalid", "daemon.did is not an instance DID")
    if signature.get("alg") != ALGORITHM or federation.get("enabled") is not True:
        raise ManifestError("manifest-malformed", f"signature.alg is {ALGORITHM} and federation.enabled is true")
    low, high = _protocols(daemon)
    signed, expires = _time(signature, "signed_at"), _time(signature, "expires_at")
    if expires <= signed or not all(isinstance(signature.get(name), str) for name in ("key_id", "signature")):
        raise ManifestError("manifest-malformed", "signature has key_id, signature, and expires_at after signed_at")
    _texts(body, "capabilities", CAPABILITIES_MAX)
    formed = Manifest(
        did, Chain(did, present), present, _key(body, "seal_key", "x25519"), _base_url(federation),
        _advertised(_member(body, "advertises"), limits), _text(daemon, "version"), low, high, signed, expires,
        canon.encode(body),
    )  # fmt: skip
    return formed, body


def _chained(manifest: Manifest, rotations: object, limits: Limits) -> Chain:
    try:
        return chain_of(manifest.did, manifest.public_key, rotations, limits)
    except SplError as exc:
        code = exc.code if exc.code in ("did-invalid", "chain-broken") else "chain-broken"
        raise ManifestError(code, SIGNATURE_FAILED, why=exc.message) from exc


def _protocols(daemon: Mapping[str, Any]) -> tuple[int, int]:
    """Return the lowest and highest protocol version; a peer that speaks several adds the `…_min` member."""
    high = daemon.get("federation_protocol_version")
    low = daemon.get("federation_protocol_version_min", high)
    if type(high) is not int or type(low) is not int or not 1 <= low <= high:
        raise ManifestError("manifest-malformed", "daemon.federation_protocol_version is a number from 1")
    return low, high


def _base_url(federation: Mapping[str, Any]) -> str:
    """Return the base URL of the three endpoints, which share its origin."""
    pair, changes, records = (
        _text(federation, name) for name in ("pair_endpoint", "sync_change_endpoint", "sync_record_endpoint")
    )
    url = pair.removesuffix(PAIR_PATH)
    if url == pair or not _ORIGIN.match(url):
        raise ManifestError("manifest-malformed", f"pair_endpoint is not http(s)://host[:port]{PAIR_PATH}")
    if not (changes.startswith(url + "/") and records.startswith(url + "/")):
        raise ManifestError("manifest-malformed", "the endpoints are not of one origin")
    return url


def _advertised(advertises: Mapping[str, Any], limits: Limits) -> tuple[str, ...] | None:
    return _texts(advertises, "namespaces", limits.namespaces_per_pair) if "namespaces" in advertises else None


def _names_key(expected: str, key: bytes) -> bool:
    return expected.strip() == multibase(key) or " ".join(expected.lower().split()) == words(key)


def _signed_text(body: Mapping[str, Any]) -> bytes:
    signature = {name: value for name, value in body["signature"].items() if name != "signature"}
    return canon.encode({**body, "signature": signature})


def _method(did: str, text: str) -> dict[str, str]:
    return {"id": f"{did}#{text}", "type": "Multikey", "controller": did, "publicKeyMultibase": text}


def _forged(why: str, **facts: str) -> ManifestError:
    return ManifestError("manifest-signature", SIGNATURE_FAILED, hint="", why=why, **facts)


def _mismatch(why: str, **facts: str) -> ManifestError:
    return ManifestError("manifest-did-mismatch", SIGNATURE_FAILED, hint="", why=why, **facts)


def _object(text: bytes, what: str) -> dict[str, Any]:
    try:
        value = canon.decode(text)
    except canon.CanonError as exc:
        raise ManifestError("manifest-malformed", f"{what} is not strict JSON: {exc.message}") from exc
    if not isinstance(value, dict):
        raise ManifestError("manifest-malformed", f"{what} is not a JSON object")
    return value


def _member(body: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = body.get(name)
    if not isinstance(value, dict):
        raise ManifestError("manifest-malformed", f"{name} is missing or no JSON object")
    return value


def _text(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not 1 <= len(value) <= TEXT_CHARS or not value.isprintable():
        raise ManifestError("manifest-malformed", f"{name} is missing or no short text")
    return value


def _texts(body: Mapping[str, Any], name: str, count_max: int) -> tuple[str, ...]:
    values = body.get(name)
    if not isinstance(values, list) or len(values) > count_max:
        raise ManifestError("manifest-malformed", f"{name} is not a list of at most {count_max} texts")
    return tuple(_text({name: value}, name) for value in values)


def _key(body: Mapping[str, Any], name: str, kind: str) -> bytes:
    try:
        return key_of(body.get(name), kind)
    except DidError as exc:
        raise ManifestError("manifest-malformed", f"{name}: {exc.message}") from exc


def _time(body: Mapping[str, Any], name: str) -> int:
    try:
        return when.ms_of(body.get(name))
    except when.WhenError as exc:
        raise ManifestError("manifest-malformed", f"signature.{name} is not an RFC 3339 UTC time") from exc
