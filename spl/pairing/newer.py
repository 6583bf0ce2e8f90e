"""Manifests that wait for their hour: a peer's newest one, taken once `MANIFEST_EVERY_MS` have passed since its last.

They are on disk as well, as a file for each pair that is replaced: a peer that moved twice within the hour tells where
it is only once, and a restart that forgot it would leave us asking at the address before.  A peer may show a new one
with each message, so its file is written once in WRITE_EVERY_S at most (beyond a few at once), by peer and not by pair;
what came meanwhile is written at its turn, and so is what the disk refused.

Runs on the thread of the steps, but for `get`.
"""

import logging
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

from ..core import canon
from ..core.backoff import Buckets
from ..core.errors import SplError
from ..core.event import event
from ..core.identity import manifest
from ..core.identity.manifest import Manifest
from ..core.limits import Limits
from ..core.pair.pair import Pair
from ..home.disk import DiskError
from ..home.vault import Vault

log = logging.getLogger("spl.federation")

NEWER_NAME: Final = "newer-manifest."
WRITES_MAX: Final = 4  # each is a disk sync that a peer causes
WRITE_EVERY_S: Final = 30.0


class NewerManifests:
    """The manifest that waits, of each pair that has one."""

    def __init__(self, vault: Vault, pairs: Mapping[str, Pair], limits: Limits) -> None:
        self._vault = vault
        self._writes = Buckets(WRITES_MAX, 1 / WRITE_EVERY_S, limits.pairs_count)
        self._unsaved: dict[str, None] = {}
        self._waiting: dict[str, Manifest] = {}
        for name in vault.names(NEWER_NAME):
            pair_id = name.removeprefix(NEWER_NAME)
            try:
                kept = manifest.from_json(canon.decode((vault.get(name) or "").encode()), limits)
            except SplError as exc:
                log.warning(**event("pair.manifest_unreadable", pair=pair_id, code=exc.code))
                continue
            pair = pairs.get(pair_id)
            if pair is not None and not pair.ended and kept.did == pair.peer_did:
                self._waiting[pair_id] = kept

    def get(self, pair_id: str) -> Manifest | None:
        """Return the manifest that waits, None if there is none."""
        return self._waiting.get(pair_id)

    def put(self, pair_id: str, peer: Manifest, now_s: float) -> None:
        """Let a manifest wait instead of the one that waited."""
        self._waiting[pair_id] = peer
        self._unsaved[pair_id] = None
        self.save(now_s)

    def take(self) -> list[tuple[str, Manifest]]:
        """Return all that wait, with their pairs; each waits on until it is put or dropped."""
        return list(self._waiting.items())

    def drop(self, pair_id: str) -> None:
        """Forget the manifest that waits, if there is one."""
        if self._waiting.pop(pair_id, None) is not None:
            self._unsaved.pop(pair_id, None)
            with suppress(DiskError):  # an old one that stays is dropped after the next start
                self._vault.delete(NEWER_NAME + pair_id)

    def save(self, now_s: float) -> None:
        """Write what is not on disk yet and has its turn."""
        for pair_id in list(self._unsaved):
            peer = self._waiting[pair_id]
            if not self._writes.take(peer.did, now_s):
                try:
                    self._vault.put(NEWER_NAME + pair_id, canon.encode(peer.raw).decode())
                    del self._unsaved[pair_id]
                except DiskError as exc:
                    log.warning(**event("pair.manifest_unsaved", pair=pair_id, error=str(exc)))
