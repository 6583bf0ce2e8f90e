"""`spl token`: bearer tokens for programs that use this daemon's API."""

from argparse import Namespace
from collections.abc import Mapping
from typing import Any, Final

from ..client.calls import quote
from ..core.errors import SplError, cli_code
from ..core.value import Json
from .command import FOUND_PROBLEMS, Command, Group, Shell, UsageError, arg, duration
from .out import OutputError, label_of, scopes_text, short_did


def _mint(args: Namespace, shell: Shell) -> int:
    body: Json = {"scopes": _scopes(args.scopes)}
    if args.ttl is not None:
        body["ttl_ms"] = args.ttl
    if args.namespace:
        body["namespaces"] = args.namespace
    for name in ("pair", "label"):
        if getattr(args, name):
            body[name] = getattr(args, name)
    minted = shell.ctl.post("/v1/tokens", body)
    if not _shown_once(minted, shell):
        shell.out.note(f"{minted['token_id']}: {', '.join(_scopes(args.scopes))}{_expiry(minted, shell)}")
        shell.out.note("the text above is shown only now and stored nowhere")
    return 0


def _shown_once(minted: Mapping[str, Any], shell: Shell) -> bool:
    """Print a new token and return whether that was for a program; one that could not be shown is revoked again."""
    try:
        if shell.printed("spl.token/1", minted):
            return True
        # The plaintext alone, so that TOKEN=$(spl token mint ...) works.
        shell.out.line(str(minted["token"]))
    except OutputError as exc:
        shell.ctl.delete(f"/v1/tokens/{quote(minted['token_id'])}")
        raise OutputError(exc.code, f"{exc.message}; the new token is revoked again, because it was not shown") from exc
    return False


def _list(args: Namespace, shell: Shell) -> int:
    tokens = shell.ctl.items("/v1/tokens")
    if not shell.printed("spl.tokens/1", tokens):
        rows = [
            (
                str(token["token_id"]), _state(token, shell), _label(token, shell),
                shell.out.ago(token.get("created_at"), "-"), str(token.get("pair_id") or "-"),
                scopes_text(token["scopes"]), ",".join(token.get("namespaces") or ["all"]),
            )
            for token in tokens
        ]  # fmt: skip
        # What tells one token from another comes first: those of all pairs have the same scopes.
        shell.out.table(
            ("TOKEN ID", "STATE", "LABEL", "CREATED", "PAIR", "SCOPES", "NAMESPACES"),
            rows,
            keep=("TOKEN ID", "STATE", "LABEL", "CREATED"),
            none="no tokens: spl token mint --scopes records:read",
        )
    return 0


def _revoke(args: Namespace, shell: Shell) -> int:
    answer = shell.ctl.delete(f"/v1/tokens/{quote(args.token_id)}")
    if not shell.printed("spl.token/1", answer):
        shell.out.line(f"{args.token_id}  {'already_revoked' if answer.get('already') else 'revoked'}")
        if answer.get("pair_id"):
            shell.out.note(f"the peer gets no new token until: spl token rotate {answer['pair_id']}")
            shell.out.note(f"to stop the pair itself: spl federation pause {answer['pair_id']}")
    return 0


def _rotate(args: Namespace, shell: Shell) -> int:
    if args.ref and (pair := _rotated_pair(args.ref, shell)) is not None:
        if not shell.printed("spl.pair/1", pair):
            held = next(token for token in pair["tokens"] if token["direction"] == "issued to us")
            shell.out.line(f"{pair['pair_id']}  rotated, {held['token_id']}")
            shell.out.note("the old tokens work until the new ones are first used")
        return 0
    if args.ref:
        minted = shell.ctl.post(f"/v1/tokens/{quote(args.ref)}/rotate", {})
        if not _shown_once(minted, shell):
            shell.out.note(f"{minted['token_id']} replaces {minted['replaced']}, which no longer works")
        return 0
    rows = shell.ctl.post("/v1/tokens/rotate", {})["data"]
    if not shell.printed("spl.tokens_rotated/1", rows):
        for row in rows:
            error = row.get("error")
            text = f"FAILED: {error['message']} [{cli_code(error['code'])}]" if error else f"rotated, {row['token_id']}"
            shell.out.line(f"{row['pair_id']}  {text}")
        if not rows:
            shell.out.hint("no live pairs; an ordinary token is rotated by its id: spl token list")
    return FOUND_PROBLEMS if any(row.get("error") for row in rows) else 0


def _rotated_pair(ref: str, shell: Shell) -> dict[str, Any] | None:
    """Replace the tokens of a pair; return None if no pair has this name, which may be that of a token."""
    if ref.startswith("tok_"):
        return None
    try:
        return shell.ctl.post(f"/v1/federation/pairs/{quote(ref)}/rotate-tokens", {})
    except SplError as exc:
        if exc.code != "pair-unknown" or ref.startswith("pair_"):
            raise
        return None


def _info(args: Namespace, shell: Shell) -> int:
    if args.stdin == bool(args.token_id):
        raise UsageError("usage", "give a TOKEN_ID or --stdin")
    if args.stdin:
        token = shell.ctl.post("/v1/tokens/inspect", {"token": shell.token()})
    else:
        token = shell.ctl.get(f"/v1/tokens/{quote(args.token_id)}")
    if not shell.printed("spl.token/1", token):
        facts = [
            ("token_id", token["token_id"]), ("state", _state(token, shell)), ("scopes", scopes_text(token["scopes"])),
            ("created", token.get("created_at")), ("expires", token.get("expires_at") or "never"),
            ("namespaces", ",".join(token.get("namespaces") or [])),
            ("pair", token.get("pair_id")), ("issued to", token.get("peer_did")),
            ("issued by", token.get("issuer_did")), ("label", token.get("label")),
        ]  # fmt: skip
        shell.out.card([(name, str(value)) for name, value in facts if value])
    return 0


def _scopes(text: str) -> list[str]:
    scopes = [scope.strip() for scope in text.split(",") if scope.strip()]
    if not scopes:
        raise UsageError("usage", "--scopes names no scope")
    return scopes


def _label(token: Mapping[str, Any], shell: Shell) -> str:
    """Return a token's label; to people that of a pair names the peer by its label, which is not cut first."""
    label, did = str(token.get("label") or "-"), str(token.get("peer_did") or "")
    return label.replace(short_did(did), label_of(did)) if did and shell.out.people else label


def _state(token: Mapping[str, Any], shell: Shell) -> str:
    state = str(token.get("state", "live"))
    return shell.out.left(token["expires_at"]) if state == "live" and token.get("expires_at") else state


def _expiry(token: Mapping[str, Any], shell: Shell) -> str:
    return f"; {shell.out.left(token['expires_at'])}" if token.get("expires_at") else ""


TREE: Final = (
    Group(
        "token",
        "A token is a bearer text with scopes; the daemon stores only its hash.\n"
        "The commands of this machine need none: the file mode of the socket is their credential.",
        "spl token list",
        (
            Command(
                "token mint",
                "Mints a token with these scopes and prints its text on stdout, once.\n"
                "Scopes: admin, records:read, records:write, status:read, metrics:read, config:read, config:write,\n"
                "aitl:approve, federation:manage, federation:sync, federation:subscribe.\n"
                "A namespace binds records:* and federation:sync alone; the other scopes are about the whole daemon.\n"
                "`spl help http` lists the routes that each scope opens.",
                "spl token mint --scopes records:read,records:write --ttl 30d --label dashboard",
                _mint,
                (
                    arg("--scopes", required=True, metavar="A,B", help="what the token may do, comma-separated"),
                    arg("--ttl", type=duration(1), metavar="DUR",
                        help="lifetime, such as 90d or 12h, at most 3650d (default: 90d)"),
                    arg("--namespace", action="append", metavar="N",
                        help="bind it to this namespace; repeatable (default: all)"),
                    arg("--pair", metavar="PAIR",
                        help="bind it to a pair and its peer, for `federation set-token` there"),
                    arg("--label", help="a name of yours for it, which other token commands take, too"),
                ),
            ),
            Command(
                "token list",
                "Lists the tokens by id, never by text, with what each may do.\n"
                "The list includes the tokens of pairs; `spl federation pause` or `revoke` is what stops a pair.",
                "spl token list",
                _list,
            ),
            Command(
                "token revoke",
                "Revokes a token at once, also for requests on open connections; this is final.\n"
                "A peer whose token is revoked gets no other until `spl token rotate PAIR` or `spl federation resume`.",
                "spl token revoke dashboard",
                _revoke,
                (arg("token_id", metavar="TOKEN_ID", help="from `spl token list`, or the label of a live token"),),
            ),
            Command(
                "token rotate",
                "Replaces the tokens of one pair or of all; the old ones work until the new ones are first used.\n"
                "A TOKEN_ID replaces an ordinary token: the new text is printed once, and the old token is revoked.",
                "spl token rotate bob",
                _rotate,
                (arg("ref", nargs="?", metavar="PAIR|TOKEN_ID", help="one pair or token (default: every live pair)"),),
            ),
            Command(
                "token info",
                "Shows the scopes, owner and expiry of a token, by its id or by its text on stdin.\n"
                "The text itself is never shown.",
                "spl token info dashboard",
                _info,
                (
                    arg("token_id", nargs="?", metavar="TOKEN_ID", help="from `spl token list`, or a label"),
                    arg("--stdin", action="store_true", help="read the token's text from stdin instead"),
                ),
            ),
        ),
    ),
)  # fmt: skip
