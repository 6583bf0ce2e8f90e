"""Pairs whose peer lost the end of its log, because its home was restored from an old copy.

Such a peer still holds an older cursor of ours and would never receive what it lost, its own records included, because
a reading omits those.  We notice when its log refuses our cursor.  From then on the pair is in doubt: the peer's
ordinary cursors are refused as "cursor-invalid", until it has read everything from the start, its own records too, and
comes back with the cursor that ended that reading.  "cursor-reset" would in turn make us read its log from the start.

The doubt ends with that cursor and not with the request for the reading: an answer may be lost, and either side may die
in between.  It is written down, since after a restart of ours nothing else would tell.  A peer that comes back with any
other cursor reads everything once more, which costs time and loses nothing.

That a log went back, the peer's or ours, is written down for the operators as well, until one of them compares the pair
and finds both sides equal: a home that an older copy replaced may lack more than peers hold.

Only the beginning of a doubt must be on disk at once.  Of all other notes this process knows better than the disk: one
that the disk refuses counts all the same and is written later (`save`), and a restart before costs a reading.
"""

import logging
import threading
from typing import Final

from ..core.event import event
from ..core.record.cursor import Cursor
from ..home.disk import DiskError
from ..home.vault import Vault
from .peer import ROLLBACK_NOTE, SET_BACK_NOTE

log = logging.getLogger("spl.federation")

OURS: Final = "us"
THEIRS: Final = "peer"


class Rollbacks:
    """The pairs in doubt, each with the cursor that ended its latest whole reading, "" before there is one.

    Any thread may call the methods.  Those that write wait for the disk: keep them off the event loop.
    """

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self._writing = threading.Lock()
        self._set_back: dict[str, str] = {}
        self._unsaved: dict[str, str | None] = {}
        """Notes that the disk lacks, by name; None for one that it still has."""
        self._ends: dict[str, str | None] = {}
        """What the vault holds of the pairs looked up so far; None for a pair that is not in doubt."""

    def __contains__(self, pair_id: str) -> bool:
        return self._end(pair_id) is not None

    @property
    def has_unsaved(self) -> bool:
        """Whether the disk refused a note."""
        return bool(self._unsaved)

    def save(self) -> None:
        """Write what the disk refused."""
        with self._writing:
            for name, text in list(self._unsaved.items()):
                self._note(name, text)

    def begin(self, pair_id: str) -> None:
        """Record that the peer's log was rolled back.  Raises DiskError: the doubt must outlive this process."""
        self.note_set_back(pair_id, THEIRS)
        with self._writing:
            self._vault.put(ROLLBACK_NOTE + pair_id, "")
            self._unsaved.pop(ROLLBACK_NOTE + pair_id, None)
            self._ends[pair_id] = ""

    def note_set_back(self, pair_id: str, whose: str) -> None:
        """Record for the operator that a log, OURS or THEIRS, lacks lines that the other side has read."""
        if self.set_back(pair_id) != whose:
            with self._writing:
                self._set_back[pair_id] = whose
                self._note(SET_BACK_NOTE + pair_id, whose)

    def set_back(self, pair_id: str) -> str:
        """Return whose log went back, "" for nobody's, since the last comparison by hand that found the sides equal."""
        if pair_id not in self._set_back:
            self._set_back[pair_id] = self._vault.get(SET_BACK_NOTE + pair_id) or ""
        return self._set_back[pair_id]

    def forget_set_back(self, pair_id: str) -> None:
        """Record that an operator compared the sides of a pair, and they are equal."""
        if self.set_back(pair_id):
            with self._writing:
                self._set_back[pair_id] = ""
                self._note(SET_BACK_NOTE + pair_id, None)

    def note_end(self, pair_id: str, text: str) -> None:
        """Record the sealed cursor that ends a whole reading of a pair in doubt."""
        with self._writing:
            if pair_id in self:
                self._ends[pair_id] = text
                self._note(ROLLBACK_NOTE + pair_id, text)

    def end(self, pair_id: str) -> None:
        """Record that the peer holds everything that it was given."""
        with self._writing:
            self._drop(pair_id)

    def allows(self, pair_id: str, cursor: Cursor | None, text: str) -> bool:
        """Return whether a reading may go on from this cursor, sealed as `text`; the awaited one ends the doubt."""
        end = self._end(pair_id)
        if end is None or cursor is None or cursor.whole:
            return True
        if text != end:
            return False
        with self._writing:
            if self._end(pair_id) == text:  # no other rollback was noticed meanwhile
                self._drop(pair_id)
        return True

    def _end(self, pair_id: str) -> str | None:
        if pair_id not in self._ends:
            self._ends[pair_id] = self._vault.get(ROLLBACK_NOTE + pair_id)
        return self._ends[pair_id]

    def _drop(self, pair_id: str) -> None:
        if pair_id in self:
            self._ends[pair_id] = None
            self._note(ROLLBACK_NOTE + pair_id, None)

    def _note(self, name: str, text: str | None) -> None:
        """Write a note, or remove it; what the disk refuses waits for `save`."""
        self._unsaved[name] = text
        try:
            if text is None:
                self._vault.delete(name)
            else:
                self._vault.put(name, text)
        except DiskError as exc:
            log.warning(**event("sync.note_unsaved", name=name, error=str(exc)))
            return
        del self._unsaved[name]
