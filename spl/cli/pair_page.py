"""`spl federation show`: one pair on one page, from the daemon's detail form."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from ..core.errors import count, plural, steps
from ..core.presence import TO_US
from ..core.when import ms_of, span, span_fine
from . import grants
from .out import Out, column, label_of, scopes_text
from .pair import map_text

Detail = Mapping[str, Any]

FRESH_MS: Final = 45_000
"""The age up to which the peer's last message counts as present: the silence after which a stream is dead."""
REACH: Final = {
    "we-push": "pushes to the peer",
    "peer-pushes": "served by push (peer opens the connections)",
}
WITHHELD_SHOWN: Final = 10
_BARS: Final = "▁▂▃▄▅▆▇█"


def state_of(pair: Detail) -> str:
    """Return a pair's state and which side paused it: "paused (by peer)"."""
    state, detail = str(pair["state"]), str(pair.get("state_detail") or "")
    rest = detail.removeprefix(f"{state} ")
    return f"{state} ({rest})" if state == "paused" and rest and rest != detail else state


def standing(pair: Detail, out: Out) -> str:
    """Return a pair's state and, which is another fact, for how long the peer, or one direction, has not answered."""
    state, since, way = state_of(pair), pair.get("offline_since"), pair.get("one_way")
    if since:
        return f"{state}, offline {span(out.now_ms() - ms_of(since))}"
    return f"{state}, one-way {span(out.now_ms() - ms_of(way['since']))}" if way else state


def facts(pair: Detail, out: Out) -> Iterator[tuple[str, str]]:
    """Yield (label, text) for each line of the page, without unknown values."""
    yield "pair_id", str(pair["pair_id"])
    yield "peer", f"{pair['peer_did']}   {pair['url']}"
    yield "state", _state(pair, out)
    yield from _syncing(pair, out)
    if pair.get("manifest"):
        yield "manifest", _manifest(pair["manifest"], out)
    if pair.get("peer_words"):
        yield "peer key", str(pair["peer_words"])
    if pair.get("our_words"):
        yield "our key", str(pair["our_words"])
    yield "namespaces", ", ".join(pair.get("namespaces") or []) or "none"
    if pair.get("maps"):
        yield "maps", ", ".join(map_text(item) for item in pair["maps"])
    if pair.get("filter"):
        yield "sends", filter_text(pair["filter"])
    if pair.get("actors"):
        yield "takes", f"records of {', '.join(pair['actors'])} only"
    yield from column("tokens", [_token(token, out) for token in pair.get("tokens") or []])
    lines = [grants.line(item, label_of(pair["peer_did"])) for item in pair.get("grants") or []]
    yield from column("grants", map(out.pasted, lines))
    if pair.get("intake"):
        yield "intake", _intake(pair["intake"], out)
    if pair.get("refused_records"):
        more = f" and more: {', '.join(beyond)}" if (beyond := pair.get("refused_beyond")) else ""
        yield "refused", count(pair["refused_records"], "record") + more
    if pair.get("withheld"):
        yield from column("withheld", _withheld(pair["withheld"], "to"))
    if pair.get("withheld_here"):
        yield from column("withheld here", _withheld(pair["withheld_here"], "from"))
    if pair.get("last_error"):
        yield "last error", _error(pair["last_error"], out)
    if any(lag is not None for lag in pair.get("lags") or []):
        yield "lag, last 30 min", f"{sparkline(pair['lags'])}  (records)"
    if (pair.get("lag_ms") or {}).get("samples"):
        yield "lag, last 5 min", _lag(pair["lag_ms"])
    yield from column("transitions", [_transition(item) for item in pair.get("transitions") or []])
    if pair.get("fix"):
        yield from column("fix", steps(str(pair["fix"])))


def _syncing(pair: Detail, out: Out) -> Iterator[tuple[str, str]]:
    """Yield the lines about the sync of a pair; of a revoked one, which has none, only its last positions."""
    live = pair["state"] != "revoked"
    if live:
        yield "mode", _mode(pair, out)
    if pair.get("carrier"):
        yield from _carrier(pair["carrier"], out)
    if live and pair.get("reach") in REACH:
        yield "reach", _reach(pair, out)
    yield "last_sync_cursor:", cursor_text(pair.get("last_sync_cursor")) + _as_of(pair, out)
    if pair.get("outbound"):
        yield "read by the peer", cursor_text(pair["outbound"]) + _until(pair)
    if live and pair.get("last_confirmed_at"):
        yield "last confirmed", _confirmed(pair, out)
    if live and pair.get("compared"):
        yield "compared", _compared(pair["compared"], out)
    if live and pair.get("peer_view"):
        read = f"; it last read from us {out.ago(pair['last_read_at'])}" if pair.get("last_read_at") else ""
        yield "peer view", _peer_view(pair["peer_view"], out) + read


def cursor_text(cursor: Mapping[str, Any] | None) -> str:
    """Return "clock=42, lagging by 138 records"."""
    if not cursor:
        return "none yet"
    lag = cursor.get("lag_records")
    if lag is None:
        return f"clock={cursor['clock']}, lag not known yet"
    return f"clock={cursor['clock']}, lagging by {lag} {plural(lag, 'record')}"


def filter_text(found: Mapping[str, Any]) -> str:
    """Return which of the shared records we send, in words."""
    whose = "all that is shared" if found["relay"] else "what this instance signed"
    by_name = f"of threads {', '.join(found['thread_allow'])}" if found["thread_allow"] else ""
    by_rule = f"where {found['thread_rule']}" if found["thread_rule"] else ""
    if found.get("fault"):
        by_rule += f" ({found['fault']})"
    which = " or ".join(part for part in (by_name, by_rule) if part)
    return f"{whose}, {which}" if which else whose


def sparkline(lags: Sequence[int | None]) -> str:
    """Return one bar per value, the tallest for the greatest; "·" for an unknown value."""
    top = max((lag for lag in lags if lag is not None), default=0) or 1
    return "".join("·" if lag is None else _BARS[min(len(_BARS) - 1, lag * len(_BARS) // (top + 1))] for lag in lags)


def _lag(lag: Mapping[str, Any]) -> str:
    """Return how long the peer took to confirm what was written here."""
    return f"p50 {lag['p50_ms']:,} ms, p99 {lag['p99_ms']:,} ms, over {count(lag['samples'], 'write')} of ours"


def _compared(compared: Mapping[str, Any], out: Out) -> str:
    """Return when the holdings of both sides were compared in the background, and what was missing after it."""
    here, there = compared["missing_here_records"], compared["missing_there_records"]
    places = [f"{count(here, 'record')} missing here"] if here else []
    places += [f"{count(there, 'record')} not at the peer yet"] if there else []
    return f"{out.ago(compared['at'])}, {', '.join(places) or 'equal'}"


def _is_fresh(pair: Detail, out: Out) -> bool:
    """Return whether the peer's last message is recent enough to describe the present; one of the future is not."""
    return not pair.get("attempt") and abs(out.now_ms() - ms_of(pair["last_confirmed_at"])) <= FRESH_MS


def _until(pair: Detail) -> str:
    """Return what the records wait for that the peer has not read; its own view says how it reads."""
    if not pair["outbound"].get("lag_records") or pair["state"] == "revoked":
        return ""
    if pair["state"] != "active":
        return f"; the pair is {pair['state']}"
    if pair.get("offline_since"):
        return "; the peer is offline"
    mode = (pair.get("peer_view") or {}).get("mode")
    waits = {"polling": "; they wait for its poll", "on-demand": "; it reads when its operator asks"}
    return waits.get(str(mode), "")


def _as_of(pair: Detail, out: Out) -> str:
    """Return the age of a lag of zero, unless the peer confirmed it just now."""
    lag = (pair.get("last_sync_cursor") or {}).get("lag_records")
    if lag != 0 or not pair.get("last_confirmed_at") or _is_fresh(pair, out):
        return ""
    return f" (as of {out.ago(pair['last_confirmed_at'])})"


def _confirmed(pair: Detail, out: Out) -> str:
    """Return when the peer last confirmed its position, and what that means now."""
    text, lag = out.ago(pair["last_confirmed_at"]), (pair.get("last_sync_cursor") or {}).get("lag_records")
    lag = None if pair.get("withheld") else lag
    if _is_fresh(pair, out):
        waits = (pair.get("outbound") or {}).get("lag_records")
        up = f"{text}, caught up; {count(waits, 'record')} of ours not fetched yet" if waits else f"{text}, caught up"
        return up if lag == 0 else text
    if pair.get("attempt") or pair["state"] == "degraded":
        before = pair.get("caught_up_ms")
        return f"{text}; before that caught up for {span(before)}" if before else text
    return f"{text}, caught up then" if lag == 0 else text


def _state(pair: Detail, out: Out) -> str:
    text = state_of(pair)
    if pair.get("since"):
        text += f" since {out.ago(pair['since'])}"
    detail = pair.get("state_detail") if pair["state"] in ("establishing", "revoked") else ""
    why = detail or pair.get("reason")
    text = f"{text} ({why})" if why and why != pair["state"] else text
    since, way = pair.get("offline_since"), pair.get("one_way")
    if since:
        return f"{text}; the peer is offline, no contact for {span(out.now_ms() - ms_of(since))}"
    if not way:
        return text
    return f"{text}; one-way since {out.ago(way['since'])}: {broken(way)}"


def broken(way: Mapping[str, Any]) -> str:
    """Return which direction is broken of a pair that works one way."""
    what = "reads" if way.get("reads") else "requests"
    return f"the peer's {what} do not arrive here" if way["direction"] == TO_US else f"our {what} do not arrive there"


def _carrier(carrier: Mapping[str, Any], out: Out) -> Iterator[tuple[str, str]]:
    """Yield the lines about the engine that the records come from."""
    way = "open" if carrier["open"] else "not open"
    yield "carrier", f"{carrier['url']}, {way}, {carrier['received_records']:,} records since it began"
    if carrier["finding"]:
        yield "", f"! {carrier['error']} [{carrier['finding']}]"
        yield from column("", (f"  fix: {out.pasted(step)}" for step in steps(carrier["fix"])))


def _mode(pair: Detail, out: Out) -> str:
    text = str(pair["mode"])
    if text == "polling":
        text += f" every {span_fine(int(pair['poll_interval_ms']))}"
    stream = pair.get("stream") or {}
    if stream.get("since"):
        text += f", stream {stream['state']} since {out.ago(stream['since'])}"
    if pair.get("next_attempt_at"):
        attempt = f" (attempt {pair['attempt']})" if pair.get("attempt") else ""
        text += f", next attempt {out.until(pair['next_attempt_at'])}{attempt}"
    return text


def _intake(intake: Mapping[str, Any], out: Out) -> str:
    """Return how much of the bytes of a day the peer brought in, and when intake resumes if they are used up."""
    text = f"{intake['day_bytes']:,} of {intake['day_bytes_max']:,} bytes within a day"
    return f"{text}; PAUSED, resumes {out.until(intake['paused_until'])}" if intake["paused_until"] else text


def _reach(pair: Detail, out: Out) -> str:
    """Return the direction of a pair that is dialled from one side only, and what prevents our push."""
    error = (pair.get("push") or {}).get("last_error")
    return REACH[pair["reach"]] + (f"; the last push failed: {_error(error, out)}" if error else "")


def _peer_view(view: Mapping[str, Any], out: Out) -> str:
    """Return what the peer last reported about the pair, in the order of its report."""
    parts = [str(view["state"])] if view.get("state") else []
    for name, value in view.items():
        if name == "readonly":
            parts.append("its store takes no records")
        elif name not in ("state", "reach", "consent") and value not in (None, ""):
            how = "for" if name == "unread_ms" else "every"
            each = f"{name.removesuffix('_ms')} {how} {span_fine(value)}" if name.endswith("_ms") else ""
            parts.append(out.ago(value) if name == "at" else each or f"{name.replace('_', ' ')} {value}")
    return ", ".join(parts)


def _manifest(manifest: Mapping[str, Any], out: Out) -> str:
    text = f"{manifest['did']}, {manifest['pair_endpoint']}, signed {out.ago(manifest['signed_at'])}"
    if manifest.get("fetched_at"):
        text += f", fetched {out.ago(manifest['fetched_at'])}"
    left = out.left(manifest["expires_at"])
    return f"{text}, {left}" if left.startswith("EXPIRED") else f"{text}, expires {out.until(manifest['expires_at'])}"


def _token(token: Mapping[str, Any], out: Out) -> str:
    text = f"{token['direction']:<14}{token['token_id']}  {scopes_text(token['scopes'])}"
    state = token.get("state") or "live"
    if token.get("expires_at") and state != "revoked":
        text += f"  {out.left(token['expires_at'])}"
    return text if state in ("live", "active", "expired") else f"{text}  {state}"


def _error(error: Mapping[str, Any], out: Out) -> str:
    when = f", {out.ago(error['at'])}" if error.get("at") else ""
    return f"{error.get('class', '')} {error.get('message', '')} [{error.get('code', '')}]{when}".strip()


def _withheld(ids: Sequence[str], way: str) -> Iterator[str]:
    for id_ in ids[:WITHHELD_SHOWN]:
        yield f"{id_}  (the way {way} the peer does not carry it)"
    if more := len(ids[WITHHELD_SHOWN:]):
        yield f"and {more} more"


def _transition(item: Mapping[str, Any]) -> str:
    stays = item.get("from") == item["to"]
    arrow = f"{item['from']} -> {item['to']}" if item.get("from") else f"-> {item['to']}"
    arrow = f"still {item['to']}" if stays else arrow
    return f"{item['at']} {arrow}" + (f"  {item['reason']}" if item.get("reason") not in (None, "", item["to"]) else "")
