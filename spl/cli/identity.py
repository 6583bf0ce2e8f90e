"""`spl identity`: who this instance is, with and without a running daemon."""

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from ..core.errors import SplError
from ..core.limits import Limits
from .command import Command, Group, Parser, Shell
from .ctl import CtlError
from .out import Out

_NOT_FOUND: Final = 6


def identity_facts(identity: Mapping[str, Any], out: Out) -> list[tuple[str, str]]:
    """Return an identity's lines for people, from its JSON form."""
    facts = [
        ("did", str(identity["did"])), ("key", str(identity["words"])), ("public key", str(identity["public_key"])),
        ("created", out.ago(identity.get("created_at"), "unknown")), ("rotations", str(identity.get("rotations", 0))),
    ]  # fmt: skip
    manifest = identity.get("manifest")
    if manifest:
        times = f"signed {out.ago(manifest['signed_at'])}, {out.left(manifest['expires_at'])}"
        facts.append(("manifest", f"{manifest['url']}, {times}"))
    return facts


def _generate_options(parser: Parser) -> None:
    parser.add_argument("--label", help="name inside the DID, [a-z0-9-]{1,32} (default: the host name)")
    parser.add_argument("--force", action="store_true", help="make a new DID even where there is one")


def _generate(args: Namespace, shell: Shell) -> int:
    before, running = _present(shell)
    if running:
        wanted = {"label": args.label} if args.label else {}
        identity = shell.ctl.post("/v1/identity", {**wanted, "force": args.force})
    else:
        identity = _offline(shell).generate_identity(Path(shell.home), args.label or "", args.force)
    out = shell.out
    kept = before is not None and before["did"] == identity["did"]
    if not out.data("spl.identity/1", identity, lambda: str(identity["did"])):
        out.card(identity_facts(identity, out))
    if kept:
        out.note("kept the identity that was there; its documents are rebuilt")
        if args.label and args.label != identity["label"]:
            out.warn("! a label cannot change; --force makes a new DID, which ends every pair of the old one")
    elif before is not None:
        out.warn(f"! {before['did']} is replaced: its pairs no longer work and must be made again,")
        out.warn("  and its records stay signed by the old DID")
    return 0


def _show(args: Namespace, shell: Shell) -> int:
    identity, _ = _present(shell)
    if identity is None:
        shell.out.failure(SplError("identity-missing"))
        return _NOT_FOUND
    if not shell.out.data("spl.identity/1", identity, lambda: str(identity["did"])):
        shell.out.card(identity_facts(identity, shell.out))
    return 0


def _verify(args: Namespace, shell: Shell) -> int:
    """Check the documents that the running daemon publishes, or the keys in the home when none runs."""
    identity, running = _present(shell)
    if identity is None:
        raise SplError("identity-missing")
    out = shell.out
    if not running:
        checked = _offline(shell).verify_identity(Path(shell.home))
    else:
        manifest = shell.load("core.manifest").verify(
            shell.ctl.fetch("/.well-known/syncropel"), shell.ctl.fetch("/.well-known/did.json"), now_ms=shell.now_ms(),
            strict=True, expect_did=identity["did"], expect_key=identity["public_key"], pinned=None, limits=Limits(),
        )  # fmt: skip
        checked = {"did": manifest.did, "words": identity["words"], "published": True}
    if not out.data("spl.identity_check/1", checked, lambda: str(identity["did"])):
        what = "the published manifest and DID document verify" if running else "the keys certify the DID"
        out.line(f"✓ {identity['did']}: {what}")
    return 0


def _present(shell: Shell) -> tuple[dict[str, Any] | None, bool]:
    """Return (the identity or None, whether a daemon told it).

    Without a daemon at the home's socket, the home itself is read.
    """
    try:
        return shell.ctl.get("/v1/identity"), True
    except CtlError as exc:
        if exc.code == "identity-missing":
            return None, True
        if exc.code != "daemon-down" or shell.distant:
            raise
    home = Path(shell.home)
    if not home.is_dir():  # a question is no reason to make a home
        return None, False
    identity: dict[str, Any] | None = _offline(shell).show_identity(home)
    return identity, False


def _offline(shell: Shell) -> Any:
    return shell.load("setup")


TREE: Final = (
    Group(
        "identity",
        "An identity is a signing key and the DID that certifies it; the DID signs records and the manifest.\n"
        "These commands work with a running daemon, and on the home itself where none runs.",
        "spl identity show",
        (
            Command(
                "identity generate",
                "Makes this instance's key and DID, and publishes its documents.\n"
                "An identity that exists is kept and its documents are rebuilt, so repeating this is harmless.",
                "spl identity generate --label alice",
                _generate,
                _generate_options,
            ),
            Command(
                "identity show",
                "Shows the DID, the key and its six words, which two operators can compare by voice.\n"
                "Without an identity it prints nothing on stdout and exits 6.",
                "spl identity show",
                _show,
            ),
            Command(
                "identity verify",
                "Checks what others check: that the DID certifies its key and the signed documents verify.\n"
                "With a running daemon the published documents are checked, else the keys in the home.",
                "spl identity verify",
                _verify,
            ),
        ),
    ),
)
