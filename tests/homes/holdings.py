"""What an instance holds and knows, in a form that a later version must still give; for the stored homes.

Left out is what passes by itself: times of contact, lags, and whether a token has ended meanwhile.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

from tests.e2e.harness import Instance

RESERVED: Final = (
    "th_federation_pairs", "th_consent", "th_engine_config", "th_namespace_registry", "th_aitl", "th_api_tokens",
    "th_audit_",
)  # fmt: skip
PAIR: Final = (
    *("pair_id", "peer_did", "state", "reason", "mode", "poll_interval_ms", "initiator", "namespaces", "maps"),
    *("filter", "actors", "refused_records", "peer_words", "our_words"),
)
TOKEN: Final = (
    *("token_id", "sa_id", "scopes", "namespaces", "pair_id", "peer_did", "label", "created_at", "expires_at"),
)
GRANT: Final = ("level", "version")
RULES: Final = ("permission-rules", "aitl-rules", "fold-rules")
CLAIMS: Final = "/v1/federation/pairs/{}/projections?limit=1000"


def held(instance: Instance) -> dict[str, Any]:
    """Return everything that is compared, as it is now; what may grow by itself is keyed, so that `lost` lets it."""
    threads = envelopes(instance)
    pairs = [instance.pair(pair["pair_id"]) for pair in instance.pairs()]
    tokens = instance.data("token", "list")
    return {
        "did": instance.did,
        "threads": {thread: digest(lines) for thread, lines in sorted(threads.items())},
        "states": {thread: state(instance, thread) for thread in sorted(threads) if not is_reserved(thread)},
        "pairs": {pair["pair_id"]: _chosen(pair, PAIR) for pair in pairs},
        "positions": {pair["pair_id"]: pair["last_sync_cursor"]["clock"] for pair in pairs},
        "claims": {pair["pair_id"]: claims(instance, pair["pair_id"]) for pair in pairs if pair["state"] == "active"},
        "grants": {_grant(item): _chosen(item, GRANT) for item in instance.data("consent", "list")},
        "tokens": {token["token_id"]: _chosen(token, TOKEN) for token in tokens},
        "revoked_tokens": {token["token_id"]: True for token in tokens if token["state"] == "revoked"},
        "namespaces": {item["name"]: item for item in instance.data("namespace", "list")},
        **{kind: rules(instance, kind) for kind in RULES},
    }


def rules(instance: Instance, kind: str) -> dict[str, Any]:
    """Return the rules of one kind by name."""
    return {rule["name"]: rule for rule in instance.data("config", f"list-{kind}")}


def is_reserved(thread: str) -> bool:
    """Return whether the daemon's own operations write on this thread."""
    return thread.startswith(RESERVED)


def envelopes(instance: Instance) -> dict[str, list[str]]:
    """Return thread -> the stored envelopes in order of arrival, reserved threads too."""
    found: dict[str, list[str]] = {}
    for line in instance.run("thread", "snapshot", "--all").out.splitlines()[1:]:
        found.setdefault(json.loads(line)["record"]["thread"], []).append(line)
    return found


def digest(lines: list[str]) -> dict[str, Any]:
    """Return the ids of envelopes and the SHA-256 of their bytes, a line feed after each."""
    text = "".join(f"{line}\n" for line in lines)
    return {"ids": [json.loads(line)["id"] for line in lines], "sha256": hashlib.sha256(text.encode()).hexdigest()}


def state(instance: Instance, thread: str) -> dict[str, Any]:
    """Return what a thread comes to, and by which rule."""
    found = instance.data("thread", "state", thread)
    return {name: found[name] for name in ("fold", "field", "rule", "value", "complete", "records")}


def claims(instance: Instance, pair_id: str) -> list[dict[str, Any]]:
    """Return the projections that came over a pair, oldest first."""
    answer = instance.api("GET", CLAIMS.format(pair_id))
    assert answer.status == 200, answer.body
    return list(answer.json["data"])


def lost(before: Any, now: Any, where: str = "") -> list[str]:
    """Return the places where `now` does not say what `before` said; members that were added do not count."""
    if isinstance(before, dict) and isinstance(now, dict):
        return [
            line for name in before for line in
            (lost(before[name], now[name], f"{where}.{name}") if name in now else [f"{where}.{name} is gone"])
        ]  # fmt: skip
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        return [line for n, item in enumerate(before) for line in lost(item, now[n], f"{where}[{n}]")]
    return [] if before == now and type(before) is type(now) else [f"{where} was {before!r} and is {now!r}"]


def _chosen(item: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: item[name] for name in names}


def _grant(item: Mapping[str, Any]) -> str:
    return f"{item['pair_id']} {item['direction']} {item['namespace']} {item['peer_namespace']}"
