"""`spl federation show`: one pair on one page, from the daemon's detail form."""

from collections.abc import Iterator, Mapping
from typing import Any

from .handshake import map_text
from .out import Out, column, scopes_text, span_fine

Detail = Mapping[str, Any]


def state_of(pair: Detail) -> str:
    """Return a pair's state with who paused it: "paused (by peer)"."""
    state, detail = str(pair["state"]), str(pair.get("state_detail") or "")
    rest = detail.removeprefix(f"{state} ")
    return f"{state} ({rest})" if state == "paused" and rest and rest != detail else state


def facts(pair: Detail, out: Out) -> Iterator[tuple[str, str]]:
    """Yield (label, text) for each line of the page; what is not known has none."""
    yield "pair_id", str(pair["pair_id"])
    yield "peer", f"{pair['peer_did']}   {pair['url']}"
    yield "state", _state(pair, out)
    yield "mode", _mode(pair, out)
    yield "last_sync_cursor:", cursor_text(pair.get("last_sync_cursor"))
    if pair.get("outbound"):
        yield "read by the peer", cursor_text(pair["outbound"])
    if pair.get("last_confirmed_at"):
        yield "last confirmed", out.ago(pair["last_confirmed_at"])
    if pair.get("peer_view"):
        yield "peer view", _peer_view(pair["peer_view"], out)
    if pair.get("manifest"):
        yield "manifest", _manifest(pair["manifest"], out)
    if pair.get("peer_words"):
        yield "peer key", str(pair["peer_words"])
    if pair.get("our_words"):
        yield "our key", str(pair["our_words"])
    yield "namespaces", ", ".join(pair.get("namespaces") or []) or "none"
    if pair.get("maps"):
        yield "maps", ", ".join(map_text(item) for item in pair["maps"])
    yield from column("tokens", [_token(token, out) for token in pair.get("tokens") or []])
    yield from column("grants", [_grant(grant) for grant in pair.get("grants") or []])
    if pair.get("refused_records"):
        yield "refused", f"{pair['refused_records']} records"
    if pair.get("last_error"):
        yield "last error", _error(pair["last_error"], out)
    yield from column("transitions", [_transition(item) for item in pair.get("transitions") or []])
    if pair.get("fix"):
        yield "fix", str(pair["fix"])


def cursor_text(cursor: Mapping[str, Any] | None) -> str:
    """Return "clock=42, lagging by 138 records"."""
    if not cursor:
        return "none yet"
    lag = cursor.get("lag_records")
    return f"clock={cursor['clock']}, lagging by {'unknown' if lag is None else lag} records"


def _state(pair: Detail, out: Out) -> str:
    text = state_of(pair)
    if pair.get("since"):
        text += f" since {out.ago(pair['since'])}"
    why = pair.get("reason") or (pair.get("state_detail") if text.startswith("establishing") else "")
    return f"{text} ({why})" if why else text


def _mode(pair: Detail, out: Out) -> str:
    text = str(pair["mode"])
    if text == "polling":
        text += f" every {span_fine(int(pair['poll_interval_ms']))}"
    if pair.get("next_attempt_at"):
        attempt = f" (attempt {pair['attempt']})" if pair.get("attempt") else ""
        text += f", next attempt {out.until(pair['next_attempt_at'])}{attempt}"
    return text


def _peer_view(view: Mapping[str, Any], out: Out) -> str:
    """Return what the peer last said about the pair, in the order in which it said it."""
    parts = [str(view["state"])] if view.get("state") else []
    for name, value in view.items():
        if name != "state" and value not in (None, ""):
            parts.append(out.ago(value) if name == "at" else f"{name.replace('_', ' ')} {value}")
    return ", ".join(parts)


def _manifest(manifest: Mapping[str, Any], out: Out) -> str:
    text = f"{manifest['did']}, {manifest['pair_endpoint']}, signed {out.ago(manifest['signed_at'])}"
    if manifest.get("fetched_at"):
        text += f", fetched {out.ago(manifest['fetched_at'])}"
    left = out.left(manifest["expires_at"])
    return f"{text}, {left}" if left.startswith("EXPIRED") else f"{text}, expires {out.until(manifest['expires_at'])}"


def _token(token: Mapping[str, Any], out: Out) -> str:
    text = f"{token['direction']:<14}{token['token_id']}  {scopes_text(token['scopes'])}"
    if token.get("expires_at"):
        text += f"  {out.left(token['expires_at'])}"
    state = token.get("state")
    return f"{text}  {state}" if state and state not in ("live", "active") else text


def _grant(grant: Mapping[str, Any] | str) -> str:
    if isinstance(grant, str):
        return grant
    maps = grant.get("maps") or []
    return f"{grant.get('namespace')} -> {', '.join(map(str, maps))} ({grant.get('level')})"


def _error(error: Mapping[str, Any], out: Out) -> str:
    when = f", {out.ago(error['at'])}" if error.get("at") else ""
    return f"{error.get('class', '')} {error.get('message', '')} [{error.get('code', '')}]{when}".strip()


def _transition(item: Mapping[str, Any]) -> str:
    arrow = f"{item['from']} -> {item['to']}" if item.get("from") else f"-> {item['to']}"
    return f"{item['at']} {arrow}" + (f"  {item['reason']}" if item.get("reason") not in (None, "", item["to"]) else "")
