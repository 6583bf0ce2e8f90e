"""What a pair is shown of a row: the stored envelope, or a projection of it at the level that was granted.

Remembers, in bounded memory, whose records a pair was given in full, where nothing else can tell whose key chain it
may ask for.
"""

import hmac
import json
from collections.abc import Sequence
from typing import Final

from .core import levels
from .core.did import multibase
from .core.levels import EXACT
from .hub import Hub, HubError
from .index import Row
from .offer import Scope
from .vault import Vault

SIGNERS_MAX: Final = 4096
_SECRET: Final = b"syncropel-pseudonym-key-v1"


class Shown:
    """The wire form of rows; used in the feed's threads."""

    def __init__(self, hub: Hub, vault: Vault) -> None:
        self.hub = hub
        self.vault = vault
        self._signers: dict[str, set[str]] = {}

    def payloads(self, pair_id: str, scope: Scope, rows: Sequence[Row]) -> list[bytes]:
        """Return what goes out for the rows, each at the level of its namespace; raise HubError "identity-missing"."""
        stored = self.hub.store.payloads(rows)
        self.note(pair_id, scope, rows)
        if all(scope.shares[row.ns].level == EXACT for row in rows):
            return stored
        return [self._shown(pair_id, scope, row, raw) for row, raw in zip(rows, stored, strict=True)]

    def note(self, pair_id: str, scope: Scope, rows: Sequence[Row]) -> None:
        """Remember whose records the pair is given in full."""
        if scope.tallied:
            return  # the index knows
        given = {row.voucher for row in rows if scope.shares[row.ns].level == EXACT}
        signers = self._signers.setdefault(pair_id, set())
        if len(signers) + len(given) > SIGNERS_MAX:
            # Whoever got records of those before has asked; these are asked for next.
            self._signers[pair_id] = given
        else:
            signers.update(given)

    def knows(self, pair_id: str, scope: Scope, did: str) -> bool:
        """Tell whether the pair may see records of this signer in full, as far as that is known."""
        full = [ns for ns, share in scope.shares.items() if share.level == EXACT]
        if did == scope.own_did:
            return True
        if not scope.tallied:
            return bool(full) and did in self._signers.get(pair_id, ())
        return scope.filter.relay and any(self.hub.store.index.tally(f"v:{ns}:{did}") for ns in full)

    def _shown(self, pair_id: str, scope: Scope, row: Row, raw: bytes) -> bytes:
        share = scope.shares[row.ns]
        if share.level == EXACT:
            return raw
        signer = self.hub.signer
        if signer is None:
            raise HubError("identity-missing")
        value = json.loads(raw)
        content = levels.content(value["record"], value["id"], share.level, pair_id, self._secret())
        key_text = multibase(signer.chain.present)
        return levels.project(content, share.level, share.ns, pair_id, signer.chain.did, key_text, signer.key)

    def pseudonym(self, pair_id: str, record_id: str) -> str:
        """Return what a record id is called at L2 and L3 towards this pair."""
        return levels.pseudonym(self._secret(), pair_id, record_id)

    def _secret(self) -> bytes:
        """Return what pseudonyms are made with: of the key of cursors, yet not that key."""
        return hmac.digest(self.vault.cursor_key(), _SECRET, "sha256")
