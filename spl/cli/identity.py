"""`spl identity`: who this instance is, with and without a running daemon."""

import os
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from ..core.errors import SplError
from ..core.limits import Limits
from .client import CtlError
from .command import Command, Group, Shell, UsageError, arg
from .out import Out

LABEL: Final = arg("--label", help="name inside the DID: 1 to 32 of a-z, 0-9 and - (default: the host name)")
"""Also an argument of `spl init`."""

_NOT_FOUND: Final = 6
EXPORT_BYTES_MAX: Final = 256 * 1024
"""Read of an export: half of what the route takes, and far more than a key chain of 64 rotations has."""


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


def _generate(args: Namespace, shell: Shell) -> int:
    before, running = _present(shell)
    label = args.label or (str(before["label"]) if before is not None else "")  # a new DID keeps the old label
    if running:
        identity = shell.ctl.post("/v1/identity", {**({"label": label} if label else {}), "force": args.force})
    else:
        identity = _offline(shell).generate_identity(Path(shell.home), label, args.force)
    out = shell.out
    kept = before is not None and before["did"] == identity["did"]
    if not out.data("spl.identity/1", identity, lambda: str(identity["did"])):
        out.card(identity_facts(identity, out))
    if kept:
        out.note("kept the existing identity and rebuilt its documents")
        if args.label and args.label != identity["label"]:
            out.warn("! a label cannot change; --force makes a new DID, which ends every pair of the old one")
    elif before is not None:
        out.warn(f"! {before['did']} is replaced: its pairs no longer work and must be paired again,")
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
    """Check the documents that the running daemon publishes, or the keys in the home if none runs."""
    identity, running = _present(shell)
    if identity is None:
        raise SplError("identity-missing")
    out = shell.out
    if not running:
        checked = _offline(shell).verify_identity(Path(shell.home))
    else:
        manifest = shell.load("core.identity.manifest").verify(
            shell.ctl.fetch("/.well-known/syncropel"), shell.ctl.fetch("/.well-known/did.json"), now_ms=shell.now_ms(),
            strict=True, expect_did=identity["did"], expect_key=identity["public_key"], pinned=None, limits=Limits(),
        )  # fmt: skip
        checked = {"did": manifest.did, "words": identity["words"], "published": True}
    if not out.data("spl.identity_check/1", checked, lambda: str(identity["did"])):
        what = "the published manifest and DID document verify" if running else "the keys certify the DID"
        out.line(f"✓ {identity['did']}: {what}")
    return 0


def _rotate(args: Namespace, shell: Shell) -> int:
    before, running = _present(shell)
    if before is None:
        raise SplError("identity-missing")
    if running:
        identity = shell.ctl.post("/v1/identity/rotate", {"compromised": args.compromised})
    else:
        identity = _offline(shell).rotate_identity(Path(shell.home), args.compromised)
    out = shell.out
    if not out.data("spl.identity/1", identity, lambda: str(identity["did"])):
        out.card(identity_facts(identity, out))
    told = "peers are told now" if running else "peers are told when the daemon starts"
    out.note(f"{told}, or learn it at their next refresh; the DID stays")
    out.warn("! exports made before no longer hold the key: spl identity export --out FILE")
    return 0


def _export(args: Namespace, shell: Shell) -> int:
    before, running = _present(shell)
    if before is None:
        raise SplError("identity-missing")
    path = Path(args.out)
    if path.exists():
        raise UsageError("usage", f"{path} exists already")
    text = shell.ctl.post("/v1/identity/export", {})["identity"] if running else _offline(shell).export_identity(
        Path(shell.home)
    )  # fmt: skip
    _write_secret(path, str(text))
    facts = {"did": before["did"], "path": str(path)}
    if not shell.out.data("spl.identity_export/1", facts, lambda: str(path)):
        shell.out.line(f"✓ {before['did']} is in {path}")
    shell.out.note("anyone with this file can act as this instance: keep it where no one else can read it")
    return 0


def _import(args: Namespace, shell: Shell) -> int:
    try:
        with Path(args.file).open("rb") as file:
            text = file.read(EXPORT_BYTES_MAX).decode()
    except (OSError, UnicodeDecodeError) as exc:
        raise UsageError("usage", f"{args.file} cannot be read: {getattr(exc, 'strerror', 'not text')}") from exc
    _, running = _present(shell)
    if running:
        identity = shell.ctl.post("/v1/identity/import", {"identity": text, "force": args.force})
    else:
        identity = _offline(shell).import_identity(Path(shell.home), text, args.force)
    if not shell.out.data("spl.identity/1", identity, lambda: str(identity["did"])):
        shell.out.card(identity_facts(identity, shell.out))
    shell.out.note("two daemons with one identity break each other's pairs: stop the daemon this identity came from")
    return 0


def _write_secret(path: Path, text: str) -> None:
    """Write a new file that only its owner may read, and sync it to the disk."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as exc:
        raise UsageError("usage", f"{path} cannot be written: {exc.strerror}") from exc


def _present(shell: Shell) -> tuple[dict[str, Any] | None, bool]:
    """Return (the identity or None, whether a running daemon reported it).

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
    if not home.is_dir():  # a query must not create a home
        return None, False
    identity: dict[str, Any] | None = _offline(shell).show_identity(home)
    return identity, False


def _offline(shell: Shell) -> Any:
    return shell.load("home.home")


TREE: Final = (
    Group(
        "identity",
        "An identity is a signing key and the DID that certifies it; the DID signs records and the manifest.\n"
        "These commands work with a running daemon, and on the home itself if none runs.",
        "spl identity show",
        (
            Command(
                "identity generate",
                "Makes this instance's key and DID, and publishes its documents.\n"
                "An existing identity is kept and its documents are rebuilt, so repeating this is harmless.",
                "spl identity generate --label alice",
                _generate,
                (
                    LABEL,
                    arg("--force", action="store_true", help="make a new DID even if there is one; ends every pair"),
                ),
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
                "Checks what peers check: the DID certifies its key and the signed documents verify.\n"
                "With a running daemon it checks the published documents, otherwise the keys in the home.",
                "spl identity verify",
                _verify,
            ),
            Command(
                "identity rotate",
                "Signs with a new key from now on; the old key signs a statement that hands over, and the DID stays.\n"
                "Peers learn it at once and pairs go on. With --compromised, records under the old key count only if\n"
                "known already, or from this instance.",
                "spl identity rotate",
                _rotate,
                (arg("--compromised", action="store_true", help="someone else may have the old key"),),
            ),
            Command(
                "identity export",
                "Writes the identity with its secret keys to a new file that only you can read.\n"
                "It cannot be made again: without this file a lost home loses its DID and its pairs.",
                "spl identity export --out alice.identity",
                _export,
                (arg("--out", required=True, metavar="FILE", help="created with mode 0600; must not exist yet"),),
            ),
            Command(
                "identity import",
                "Imports an exported identity, such as into a new home after a loss, and publishes it at once.\n"
                "A home with another identity refuses it without --force.",
                "spl identity import alice.identity",
                _import,
                (
                    arg("file", metavar="FILE", help="written by `spl identity export`"),
                    arg("--force", action="store_true", help="replace another identity"),
                ),
            ),
        ),
    ),
)
