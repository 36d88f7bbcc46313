"""The manifest on the replica: reading its head, writing the next checkpoint, compaction.

The codec and the fold are ``core.chain``'s. Engine's thread only.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import SpooledTemporaryFile

from blake3 import blake3

from onesync.core.chain import (
    Change,
    Checkpoint,
    Damaged,
    Head,
    Header,
    NewerFormat,
    Packed,
    Position,
    asked_for,
    base_name,
    checkpoint_name,
    decode,
    encoded,
    find_head,
    parse_name,
)
from onesync.core.claims import EPOCHS, epoch_name, parse_beat, parse_epoch, told_checkpoint
from onesync.core.clock import Clock
from onesync.core.model import STATUS_FOLDER, RelPath, join, show
from onesync.core.tree import Fold, Tree
from onesync.errors import Halted, NotArrived
from onesync.local import on_this_machine
from onesync.patience import comes
from onesync.replica.door import Replica
from onesync.workers import begin

log = logging.getLogger(__name__)

MANIFEST = STATUS_FOLDER + b"/manifest"
_COMPACT_AT_LEAST = 1 << 20
_KEPT_BASES = 3
_SMALL = 1 << 20
"""A checkpoint of more bytes is not held in memory on its way."""


@dataclass(frozen=True, slots=True)
class Written:
    """A checkpoint that stands; ``digest`` is what its successor names."""

    name: str
    digest: str
    position: Position
    wall_seconds: float


class _Spooled:
    """A file of the spool that lost its name; see ``core.chain.Packed``."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDONLY)
        path.unlink()
        self._size = os.fstat(self._fd).st_size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice, /) -> bytes:
        start, stop, _ = part.indices(self._size)
        return os.pread(self._fd, stop - start, start)

    def __del__(self) -> None:
        os.close(self._fd)


def read_head(
    replica: Replica,
    folder_id: str | None = None,
    spool: Path | None = None,
    make_tree: Callable[[], Fold] = Tree,
    workers: Executor | None = None,
    claimed: int | None = None,
) -> Head | None:
    """Read the head; None in a folder without checkpoints.

    The listing may be stale: the claims tell by name of epochs and checkpoints that it hides.
    Raises Halted when there are checkpoints and none can be used.

    Args:
        replica: the door.
        folder_id: of the folder, where it is known.
        spool: a local directory in which bases are read rather than in memory.
        make_tree: makes the empty tree that is folded into.
        workers: read ahead, side by side; None: nothing is read ahead.
        claimed: the epoch that we hold, and of which there is nothing yet.
    """
    listed = begin(workers, replica.names, MANIFEST)
    highest = _highest_epoch(replica) if claimed is None else claimed - 1
    last = begin(workers, _told_by, replica, highest)
    names = [name.decode("utf-8", "replace") for name in listed()]
    first, told = _told_by_claims(replica, names, highest, last)
    read: Callable[[str], Packed] = partial(_read, replica, spool)
    if workers is not None:
        read = _ahead(workers, read, asked_for(names, first, told))
    try:
        return find_head(
            [*names, *first],
            read,
            told,
            folder_id,
            make_tree,
        )
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


def _ahead(
    workers: Executor, read: Callable[[str], Packed], names: Iterable[str]
) -> Callable[[str], Packed]:
    """Begin to read ``names``; returns what reads as ``read`` does."""
    begun = {name: workers.submit(read, name) for name in names}

    def found(name: str) -> Packed:
        return begun.pop(name).result() if name in begun else read(name)

    return found


def _read(replica: Replica, spool: Path | None, name: str) -> Packed:
    path = join(MANIFEST, name.encode())
    parsed = parse_name(name)
    if spool is None or parsed is None or not parsed[1]:
        return replica.read(path)
    local = spool / name
    with on_this_machine():
        local.unlink(missing_ok=True)
    try:
        replica.fetch(path, bytes(local), 0o600, None)
    except InterruptedError:  # no regular file
        return replica.read(path)
    with on_this_machine():
        return _Spooled(local)


def _told_by_claims(
    replica: Replica, names: list[str], highest: int, last: Callable[[], list[str]]
) -> tuple[list[str], list[str]]:
    """Return the first names of epochs that ``names`` lacks, and what the newest claims tell of.

    ``last`` tells what the one of the ``highest`` epoch does.
    """
    listed = max((found[0].epoch for name in names if (found := parse_name(name))), default=0)
    places = [Position(epoch, 1) for epoch in range(listed + 1, highest + 1)]
    first = [name for place in places for name in (checkpoint_name(place), base_name(place))]
    told: list[str] = []
    for epoch in range(highest, 0, -1):
        told = last() if epoch == highest else _told_by(replica, epoch)
        if told or epoch <= listed:
            break
    return first, told


def _highest_epoch(replica: Replica) -> int:
    """Return the highest epoch; all below it were claimed, whether or not a listing has them."""
    try:
        listed = replica.names(EPOCHS)
    except FileNotFoundError:
        return 0
    highest = max((parse_epoch(name) or 0 for name in listed), default=0)
    while replica.look(join(EPOCHS, epoch_name(highest + 1))) is not None:
        highest += 1
    return highest


def _told_by(replica: Replica, epoch: int) -> list[str]:
    """Return the checkpoint that a claim's end names, or its newest beat that is listed."""
    claim = join(EPOCHS, epoch_name(epoch))
    with suppress(FileNotFoundError):
        ended_with = told_checkpoint(replica.read(join(claim, b"end.json")))
        if ended_with is not None:
            return [ended_with]
    with suppress(FileNotFoundError):
        beats = [name for name in replica.names(claim) if parse_beat(name) is not None]
        told = [told_checkpoint(replica.read(join(claim, name))) for name in sorted(beats)[-1:]]
        return [name for name in told if name is not None]
    return []


def remove_torn_beginnings(replica: Replica) -> None:
    """Remove the checkpoints of a folder that has no head: bases that were torn as they were made.

    Only the owner may, who writes the first one anew.
    """
    for name in replica.names(MANIFEST):
        if parse_name(name.decode("utf-8", "replace")) is not None:
            log.warning("torn checkpoint removed", extra={"file": show(name)})
            replica.remove(join(MANIFEST, name))


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
        may_write: Callable[[], None] = lambda: None,
        spool: Path | None = None,
    ) -> None:
        """Continue ``head`` in ``epoch``; None begins a chain.

        ``may_write`` raises when the lock may be another's. Large checkpoints are made in the
        local directory ``spool`` (None: in the system's for temporaries).
        """
        self._may_write = may_write
        self._spool = None if spool is None else str(spool)
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
        self._tried: str | None = None

    def write(self, changes: Iterable[Change], why: str) -> Written:
        """Write the next checkpoint and read it back.

        It counts when nobody can have taken over before it stood. After an error its result is
        unknown: ``unfinished`` must be asked before the next one.
        """
        wall = self._clock.wall_ns() / 1e9
        if self._tried not in (None, self._name(why)):
            self._skip()  # or what may still arrive would stand beside it, at the same position
        header = Header(
            self._folder_id,
            self.position,
            self.head,
            self._writer,
            datetime.fromtimestamp(wall, UTC).isoformat(timespec="seconds"),
            why,
            self._working_dirs,
        )
        name = self._tried = self._name(why)
        with on_this_machine():
            file = SpooledTemporaryFile(_SMALL, dir=self._spool)  # noqa: SIM115 - closed below
        with file:
            hasher = blake3()
            for piece in encoded(header, changes):
                hasher.update(piece)
                with on_this_machine():
                    file.write(piece)
            size, digest = file.tell(), hasher.hexdigest()
            self._send(name, file, size, digest)
        self._may_write()
        return self._advance(name, digest, size, why, wall)

    def _send(self, name: str, file: SpooledTemporaryFile[bytes], size: int, digest: str) -> None:
        """Write a checkpoint and read it back."""
        path = join(MANIFEST, name.encode())
        if size <= _SMALL:
            file.seek(0)
            data = file.read()
            self._replica.write_new(path, data)
            self._confirm(name, partial(self._holds, path, data))
        else:
            with on_this_machine():
                file.flush()
            self._replica.put(b"/proc/%d/fd/%d" % (os.getpid(), file.fileno()), path)
            self._confirm(name, lambda: self._replica.digest(path) == (digest, size))

    def _holds(self, path: RelPath, data: bytes) -> bool:
        return self._replica.read(path) == data

    def _confirm(self, name: str, reads_back: Callable[[], bool]) -> None:
        if not comes(reads_back, self._clock.sleep):
            raise NotArrived(
                f"The checkpoint {name} reads back differently from OneData; nothing is lost, the"
                " batch is done again."
            )

    def unfinished(self) -> tuple[Checkpoint, Written] | None:
        """Find out about a checkpoint whose write or read-back failed: it may stand all the same.

        One that stands is flushed, taken as written and returned; a torn one is removed. What was
        sent may still arrive: a name is created once, so the same one may be tried again, but a
        position never gets the other kind.
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
            # What was not flushed for certain may stand in a buffer alone: it is sent once more.
            self._replica.overwrite(path, data)
            self._confirm(name, partial(self._holds, path, data))
            wall = self._clock.wall_ns() / 1e9
            return found, self._advance(name, found.digest, found.size, found.header.why, wall)
        if self._tried == base_name(self.position):
            self._skip()
        return None

    def _name(self, why: str) -> str:
        return base_name(self.position) if why == "base" else checkpoint_name(self.position)

    def compaction_due(self) -> bool:
        """Whether the checkpoints since the last base outweigh it."""
        return self._since_base > max(_COMPACT_AT_LEAST, self._base_size)

    def remove_old(self) -> Position | None:
        """Remove what is older than the last three bases: no fold needs it.

        Returns the oldest base that is kept; None where there are fewer.
        """
        found = {
            name: parsed
            for name in self._replica.names(MANIFEST)
            if (parsed := parse_name(name.decode("utf-8", "replace"))) is not None
        }
        # Later ones than ours nobody can have written but to have the real ones removed.
        bases = sorted(
            position
            for position, is_base in found.values()
            if is_base and self.committed is not None and position <= self.committed
        )
        if len(bases) < _KEPT_BASES:
            return None
        for name, (position, _) in found.items():
            if position < bases[-_KEPT_BASES]:
                self._replica.remove(join(MANIFEST, name))
        return bases[-_KEPT_BASES]

    def _advance(self, name: str, digest: str, size: int, why: str, wall: float) -> Written:
        place = self.position
        written = Written(name, digest, place, wall)
        self.head = (name, digest)
        self.committed = place
        self._skip()
        if why == "base":
            self._base_size, self._since_base = size, 0
        else:
            self._since_base += size
        return written

    def _skip(self) -> None:
        self.position = Position(self.position.epoch, self.position.sequence + 1)
        self._tried = None
