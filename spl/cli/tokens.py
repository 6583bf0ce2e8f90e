"""`spl token`: bearers for programs that use this daemon's API."""

from argparse import Namespace
from collections.abc import Mapping
from typing import Any, Final

from ..core.errors import cli_code
from ..core.when import duration_ms
from .client import quote
from .command import Command, Group, Parser, Shell, UsageError
from .out import scopes_text

TOKEN_BYTES_MAX: Final = 4096
_PROBLEMS: Final = 3


def _mint_options(parser: Parser) -> None:
    parser.add_argument("--scopes", required=True, metavar="A,B", help="what the token may do, comma-separated")
    parser.add_argument("--ttl", metavar="DUR", help="how long it lives, such as 90d or 12h")
    parser.add_argument("--namespace", action="append", metavar="N", help="bind it to a namespace; repeatable")
    parser.add_argument("--pair", metavar="PAIR", help="bind it to a pair and that pair's peer")
    parser.add_argument("--label", help="a note to recognise it by")


def _mint(args: Namespace, shell: Shell) -> int:
    body: dict[str, object] = {"scopes": _scopes(args.scopes)}
    if args.ttl:
        body["ttl_ms"] = duration_ms(args.ttl)
    if args.namespace:
        body["namespaces"] = args.namespace
    for name in ("pair", "label"):
        if getattr(args, name):
            body[name] = getattr(args, name)
    minted = shell.ctl.post("/v1/tokens", body)
    if not shell.printed("spl.token/1", minted):
        # The plaintext alone, so that TOKEN=$(spl token mint ...) works.
        shell.out.line(str(minted["token"]))
        shell.out.note(f"{minted['token_id']}: {', '.join(_scopes(args.scopes))}{_expiry(minted, shell)}")
        shell.out.note("the text above is shown this once and kept nowhere")
    return 0


def _list(args: Namespace, shell: Shell) -> int:
    tokens = shell.ctl.items("/v1/tokens")
    if not shell.printed("spl.tokens/1", tokens):
        rows = [
            (
                str(token["token_id"]), _state(token, shell), scopes_text(token["scopes"]),
                ",".join(token.get("namespaces") or ["all"]), str(token.get("pair_id") or "-"),
                str(token.get("label") or "-"),
            )
            for token in tokens
        ]  # fmt: skip
        shell.out.table(("TOKEN ID", "STATE", "SCOPES", "NAMESPACES", "PAIR", "LABEL"), rows)
    return 0


def _revoke_options(parser: Parser) -> None:
    parser.add_argument("token_id", metavar="TOKEN_ID", help="from `spl token list`")


def _revoke(args: Namespace, shell: Shell) -> int:
    answer = shell.ctl.delete(f"/v1/tokens/{quote(args.token_id)}")
    if not shell.printed("spl.token/1", answer):
        shell.out.line(f"{args.token_id}  {'already_revoked' if answer.get('already') else 'revoked'}")
    return 0


def _rotate_options(parser: Parser) -> None:
    parser.add_argument("ref", nargs="?", metavar="PAIR|TOKEN_ID", help="one pair or token; every live pair without")


def _rotate(args: Namespace, shell: Shell) -> int:
    if args.ref and not args.ref.startswith("tok_"):
        pair = shell.ctl.post(f"/v1/federation/pairs/{quote(args.ref)}/rotate-tokens", {})
        if not shell.printed("spl.pair/1", pair):
            held = next(token for token in pair["tokens"] if token["direction"] == "issued to us")
            shell.out.line(f"{pair['pair_id']}  rotated, {held['token_id']}")
            shell.out.note("the old tokens work until the new ones were used")
        return 0
    if args.ref:
        minted = shell.ctl.post(f"/v1/tokens/{quote(args.ref)}/rotate", {})
        if not shell.printed("spl.token/1", minted):
            shell.out.line(str(minted["token"]))
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
    return _PROBLEMS if any(row.get("error") for row in rows) else 0


def _info_options(parser: Parser) -> None:
    parser.add_argument("token_id", nargs="?", metavar="TOKEN_ID", help="from `spl token list` or `federation show`")
    parser.add_argument("--stdin", action="store_true", help="read the token's text from stdin instead")


def _info(args: Namespace, shell: Shell) -> int:
    if args.stdin == bool(args.token_id):
        raise UsageError("usage", "give a TOKEN_ID or --stdin")
    if args.stdin:
        text = shell.stdin.read(TOKEN_BYTES_MAX).decode(errors="replace").strip()
        token = shell.ctl.post("/v1/tokens/inspect", {"token": text})
    else:
        token = shell.ctl.get(f"/v1/tokens/{quote(args.token_id)}")
    if not shell.printed("spl.token/1", token):
        facts = [
            ("token_id", token["token_id"]), ("state", _state(token, shell)), ("scopes", scopes_text(token["scopes"])),
            ("expires", token.get("expires_at") or "never"), ("namespaces", ",".join(token.get("namespaces") or [])),
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


def _state(token: Mapping[str, Any], shell: Shell) -> str:
    state = str(token.get("state", "live"))
    return shell.out.left(token["expires_at"]) if state == "live" and token.get("expires_at") else state


def _expiry(token: Mapping[str, Any], shell: Shell) -> str:
    return f"; {shell.out.left(token['expires_at'])}" if token.get("expires_at") else ""


TREE: Final = (
    Group(
        "token",
        "A token is a bearer text with scopes; the daemon keeps only its hash.\n"
        "The local command line needs none, for the file mode of the socket is its credential.",
        "spl token list",
        (
            Command(
                "token mint",
                "Makes a token with these scopes and prints its text on stdout, once.\n"
                "Scopes: admin, records:read, records:write, config:read, config:write, aitl:approve,\n"
                "federation:manage, federation:sync, federation:subscribe, status:read, metrics:read.\n"
                "A namespace binds records:* and federation:sync alone; the others are about the whole daemon.",
                "spl token mint --scopes records:read,records:write --ttl 30d --label dashboard",
                _mint,
                _mint_options,
            ),
            Command(
                "token list",
                "Lists the tokens by id, never by text, with what each may do.\n"
                "Those of pairs stand among them, and revoking one of these stops that pair's sync.",
                "spl token list",
                _list,
            ),
            Command(
                "token revoke",
                "Ends a token at once, also for requests already on open connections.\n"
                "There is no way back; mint another one instead.",
                "spl token revoke tok_91ab03cd",
                _revoke,
                _revoke_options,
            ),
            Command(
                "token rotate",
                "Replaces the tokens of one pair or of all; the old ones work until the new ones were used.\n"
                "A TOKEN_ID replaces an ordinary token: its successor's text is printed once, and the old one ends.",
                "spl token rotate pair_a1b2c3d4",
                _rotate,
                _rotate_options,
            ),
            Command(
                "token info",
                "Shows what a token may do, whose it is and when it ends, by id or by its text on stdin.\n"
                "The text itself is never shown.",
                "spl token info tok_91ab03cd",
                _info,
                _info_options,
            ),
        ),
    ),
)
