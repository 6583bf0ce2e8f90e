"""What this instance publishes about itself: the signed manifest and the DID document.

`signed_at` strictly increases, also across restarts and small corrections of the clock, because peers refuse a manifest
older than the last they accepted: the last one is kept in the vault before the document is published.  If the disk is
full it is published all the same, because without a manifest no pair lives: its date is the clock's, and the next
start signs by a later one, unless the clock was set back too.  A date
more than five minutes ahead of the present clock is not built upon: the clock was wrong then, and peers would refuse
each later manifest until that time comes.  They take the next one by the right clock (`manifest.is_ahead`).

A clock that stood minutes behind dates a manifest so early that peers take it for stale.  So it is signed again as soon
as the clock was set: as it shows when the wall clock moved otherwise than the steady one.
"""

import logging
import threading
from collections.abc import Callable
from typing import Any, Final

from ..core import when
from ..core.errors import SplError
from ..core.event import event
from ..core.identity import manifest
from ..core.limits import Limits
from ..core.record import namespace
from ..core.version import VERSION
from .disk import DiskError
from .vault import Identity, Vault
from .writer import Writer

log = logging.getLogger("spl.store")

SIGNED_AT: Final = "manifest-signed-at"
RESIGN_SHARE: Final = 2
"""The manifest is signed again after 1/2 of its validity."""


class PublishError(SplError):
    """There is nothing to publish yet; code manifest-missing."""


class ManifestSigner:
    """Signs and keeps the documents of one daemon.

    Called from the event loop and the pairing thread; a re-signing syncs one file.
    """

    def __init__(
        self, writer: Writer, vault: Vault, limits: Limits, *, url: str, now_ms: Callable[[], int],
        steady_ms: Callable[[], int],
    ) -> None:  # fmt: skip
        self.url, self._steady_ms = url.rstrip("/"), steady_ms
        self._writer, self._vault, self._limits, self._now_ms = writer, vault, limits, now_ms
        self._lock = threading.Lock()
        self._made_for: tuple[object, ...] = ()
        self._signed_at_ms = self._offset_ms = 0
        """The date of the present manifest, and how far the wall clock was before the steady one then."""
        self._document: dict[str, Any] = {}

    @property
    def endpoint(self) -> str:
        """Where peers ask us for a pair."""
        return self.url + manifest.PAIR_PATH

    def manifest(self) -> dict[str, Any]:
        """Return the document of `/.well-known/syncropel`, signed again when due or when its content changed.

        Raises PublishError "manifest-missing".
        """
        with self._lock:
            identity = self._identity()
            registry = self._writer.views.namespaces
            names = [name for name in sorted(registry) if namespace.shareable(registry, name)]
            content = (identity.did, identity.key.public, identity.seal_key, tuple(names))
            now_ms = self._now_ms()
            aged = (now_ms - self._signed_at_ms) * RESIGN_SHARE >= self._limits.manifest_ttl_s * 1000
            was_set = abs(now_ms - self._steady_ms() - self._offset_ms) > manifest.CLOCK_SKEW_MS
            if content != self._made_for or aged or was_set or manifest.is_ahead(self._signed_at_ms, now_ms):
                self._sign(identity, names)
                self._made_for = content
            return self._document

    def renew(self) -> None:
        """Let the next call of `manifest` sign again."""
        with self._lock:
            self._made_for = ()

    def federation_manifest(self) -> dict[str, Any]:
        """Return the signed part, as it travels inside a pair request."""
        document: dict[str, Any] = self.manifest()["federation_manifest"]
        return document

    def did_document(self) -> dict[str, Any]:
        """Return the document of `/.well-known/did.json`; raise PublishError "manifest-missing"."""
        identity = self._identity()
        return manifest.did_document(identity.chain, identity.seal_key, self.url)

    def _sign(self, identity: Identity, names: list[str]) -> None:
        now_ms, last_ms = self._now_ms(), max(self._last_ms(), self._signed_at_ms)
        signed_at_ms = now_ms if manifest.is_ahead(last_ms, now_ms) else max(now_ms, last_ms + 1)
        try:
            self._vault.put(SIGNED_AT, when.text_of(signed_at_ms))
        except DiskError as exc:
            log.warning(**event("manifest.date_unsaved", error=str(exc)))
        self._document = manifest.build(
            identity.chain, identity.key, identity.seal_key, url=self.url, namespaces=names, version=VERSION,
            now_ms=signed_at_ms, limits=self._limits,
        )  # fmt: skip
        self._signed_at_ms, self._offset_ms = signed_at_ms, now_ms - self._steady_ms()

    def _last_ms(self) -> int:
        try:
            return when.ms_of(self._vault.get(SIGNED_AT))
        except when.WhenError:
            return 0

    def _identity(self) -> Identity:
        if self._vault.identity is None:
            raise PublishError(
                "manifest-missing",
                "this daemon has no identity, so it publishes no manifest",
                hint="spl identity generate",
            )
        return self._vault.identity
