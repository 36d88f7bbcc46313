"""Journals and logs that stand beside databases when a deployment begins, or is cleaned away.

OneData holds a database's snapshot, which was rolled back, or has the log's pages in it; here
stands what the writers left. Neither the stamp nor the bytes of the file alone tell whether both
are the same: another snapshot does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from onesync.core.model import RelPath, join
from onesync.core.ordering import database_of
from onesync.local import digest_local
from onesync.snapshot import Snapshots

_SNAPSHOT_SECONDS = 600.0


class Sidecars:
    """What has a sidecar's name beneath a working copy. One thread.

    Attributes:
        beside: the paths, by that of what would be their database, whether or not it is there.
    """

    def __init__(self, root: bytes, spool: Path) -> None:
        """Look beneath the absolute path ``root``; ``spool`` takes one snapshot at a time."""
        self._root = root
        self._place = bytes(spool / "left.snapshot")
        self._snapshots = Snapshots()
        self.beside: dict[RelPath, list[RelPath]] = {}
        for path in sorted(path for path in _files_in(root) if database_of(path) is not None):
            self.beside.setdefault(database_of(path) or b"", []).append(path)

    def is_as_pushed(self, path: RelPath, digest: str) -> bool:
        """Whether a database is, with all beside it, what the snapshot with ``digest`` was of.

        What cannot be copied now, or is no database, is not.
        """
        (taken,) = self._snapshots.take([(join(self._root, path), self._place)], _SNAPSHOT_SECONDS)
        if not taken.taken:
            return False
        found = digest_local(self._place).digest
        os.unlink(self._place)
        return found == digest

    def close(self) -> None:
        """End the process that takes the snapshots."""
        self._snapshots.close()


def _files_in(root: bytes) -> Iterator[RelPath]:
    for folder, _, names in os.walk(root):
        above = folder[len(root) + 1 :]
        yield from (join(above, name) for name in names)
