"""The manifest on the replica: reading its head, writing the next checkpoint, compaction.

The codec and the fold are ``core.chain``'s. Engine's thread only.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from onesync.core.chain import (
    Change,
    Checkpoint,
    Damaged,
    Head,
    Header,
    NewerFormat,
    Position,
    base_name,
    checkpoint_name,
    decode,
    encode,
    file_digest,
    find_head,
    parse_name,
)
from onesync.core.clock import Clock
from onesync.core.model import STATUS_FOLDER, join, show
from onesync.errors import Halted, OnesyncError
from onesync.replica.door import Replica

log = logging.getLogger(__name__)

MANIFEST = STATUS_FOLDER + b"/manifest"
_COMPACT_AT_LEAST = 1 << 20
_KEPT_BASES = 3


@dataclass(frozen=True, slots=True)
class Written:
    """A checkpoint that stands; ``digest`` is what its successor names."""

    name: str
    digest: str
    position: Position
    wall_seconds: float


def read_head(replica: Replica) -> Head | None:
    """Read the head; None in a folder without checkpoints.

    Raises Halted when there are some and none can be used.
    """
    names = [item.name.decode("utf-8", "replace") for item in replica.list(MANIFEST)]
    try:
        return find_head(names, lambda name: replica.read(join(MANIFEST, name.encode())))
    except Damaged as error:
        raise Halted(
            f"No checkpoint of the manifest can be used ({error}); nothing was changed. The files"
            " in OneData are as they are: restore the manifest folder from a backup, or move it"
            " away to deploy the files without links, modes and times."
        ) from error
    except NewerFormat as error:
        raise Halted(
            f"The manifest was written by a newer onesync ({error}); nothing was changed. Install"
            " the newer onesync."
        ) from error


def remove_torn_beginnings(replica: Replica) -> None:
    """Remove the checkpoints of a folder that has no head: bases that were torn as they were made.

    Only the owner may, who writes the first one anew.
    """
    for item in replica.list(MANIFEST):
        if parse_name(item.name.decode("utf-8", "replace")) is not None:
            log.warning("torn checkpoint removed", extra={"file": show(item.name)})
            replica.remove(join(MANIFEST, item.name))


class Manifest:
    """Where the chain stands for the owner of an epoch."""

    def __init__(
        self,
        replica: Replica,
        clock: Clock,
        folder_id: str,
        head: Head | None,
        epoch: int,
        writer: str,
        working_dirs: tuple[bytes, ...],
    ) -> None:
        """Continue ``head`` in ``epoch``; None begins a chain."""
        self._replica = replica
        self._clock = clock
        self._folder_id = folder_id
        self._writer = writer
        self._working_dirs = working_dirs
        self.head = (head.name, head.digest) if head else None
        self.committed = head.position if head else None
        self.position = Position(epoch, 1)
        self._base_size = head.base_size if head else 0
        self._since_base = head.since_base if head else 0

    def write(self, changes: Iterable[Change], why: str) -> Written:
        """Write the next checkpoint and read it back.

        After an error its result is unknown: ``unfinished`` must be asked before the next one.
        """
        wall = self._clock.wall_ns() / 1e9
        header = Header(
            self._folder_id,
            self.position,
            self.head,
            self._writer,
            datetime.fromtimestamp(wall, UTC).isoformat(timespec="seconds"),
            why,
            self._working_dirs,
        )
        data = encode(header, changes)
        name = base_name(self.position) if why == "base" else checkpoint_name(self.position)
        path = join(MANIFEST, name.encode())
        self._replica.write_new(path, data)
        if self._replica.read(path) != data:
            raise OnesyncError(
                f"The checkpoint {name} reads back differently from OneData; nothing is lost, the"
                " batch is done again."
            )
        return self._advance(name, data, why, wall)

    def unfinished(self) -> tuple[Checkpoint, Written] | None:
        """Find out about a checkpoint whose write or read-back failed: it may stand all the same.

        One that stands is taken as written and returned; a torn one is removed.
        """
        for name in (checkpoint_name(self.position), base_name(self.position)):
            path = join(MANIFEST, name.encode())
            try:
                data = self._replica.read(path)
            except FileNotFoundError:
                continue
            try:
                found = decode(data)
            except Damaged as error:
                # Torn while we wrote it: nobody can have continued it.
                log.warning("torn checkpoint removed", extra={"file": name, "reason": str(error)})
                self._replica.remove(path)
                continue
            wall = self._clock.wall_ns() / 1e9
            return found, self._advance(name, data, found.header.why, wall)
        return None

    def compaction_due(self) -> bool:
        """Whether the checkpoints since the last base outweigh it."""
        return self._since_base > max(_COMPACT_AT_LEAST, self._base_size)

    def remove_old(self) -> Position | None:
        """Remove what is older than the last three bases: no fold needs it.

        Returns the oldest base that is kept; None where there are fewer.
        """
        found = {
            item.name: parsed
            for item in self._replica.list(MANIFEST)
            if (parsed := parse_name(item.name.decode("utf-8", "replace"))) is not None
        }
        bases = sorted(position for position, is_base in found.values() if is_base)
        if len(bases) < _KEPT_BASES:
            return None
        for name, (position, _) in found.items():
            if position < bases[-_KEPT_BASES]:
                self._replica.remove(join(MANIFEST, name))
        return bases[-_KEPT_BASES]

    def _advance(self, name: str, data: bytes, why: str, wall: float) -> Written:
        place = self.position
        written = Written(name, file_digest(data), place, wall)
        self.head = (name, written.digest)
        self.committed = place
        self.position = Position(place.epoch, place.sequence + 1)
        if why == "base":
            self._base_size, self._since_base = len(data), 0
        else:
            self._since_base += len(data)
        return written
