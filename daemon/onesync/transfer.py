"""Brings one file's content to the replica, with as few bytes as can be.

What the replica has already is not sent; a large file is appended to, or only its changed blocks
are written; everything else travels whole into a temporary. What takes long goes on in the next
batches. Called in the push's workers.
"""

from __future__ import annotations

import errno
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

from onesync.core.blocks import DIGEST_BYTES, PATCH_FROM, Blocks, block_size
from onesync.core.model import Kind, Known, RelPath, Stamp, is_damaged_row, is_sound
from onesync.core.plan import Difference
from onesync.errors import LocalError
from onesync.local import digest_local, local_size, on_this_machine
from onesync.replica.door import Compared, Copied, Replica
from onesync.replica.flights import aloft

_TAIL = 256 << 20
"""A longer growth travels in rounds, as a new file does; a round of what also changed inside ends
there."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a file's content comes from, and the names that the intent keeps for it.

    Attributes:
        local: absolute path of the file, its snapshot or its descriptor.
        frozen: whether it is a snapshot, which nobody changes.
        temporary: the name for a whole copy.
        undo: the name for the old blocks; None where it is not patched.
        blocks: of the version in the replica, where they are known.
        digest: of a small new file, which is created under its own name; None of all others.
        so_far: how far the whole copy in the temporary came in earlier batches; None where none was
            begun.
        damaged: digests of what came damaged, where such a copy is known under this name.
    """

    local: bytes
    frozen: bool
    temporary: RelPath
    undo: RelPath | None
    blocks: Blocks | None
    digest: str | None = None
    so_far: Copied | None = None
    damaged: AbstractSet[str] = frozenset()


_NO_FILE = (errno.EISDIR, errno.ELOOP, errno.ENXIO)
"""What OneData answers where something else than a file stands."""


class NameTaken(Exception):
    """Something stands where a new file was to be created; it was not touched."""


@dataclass(frozen=True, slots=True)
class Brought:
    """Content that is in the replica, or ready to be patched into it.

    Attributes:
        copied: what a whole copy gives.
        sent: bytes that travelled, or will.
        in_place: nothing remains to be done to the file.
        temporary: where the whole copy is.
        numbers: the blocks to be patched in when it is published.
        undo: the undo file that was made.
        renewed: the blocks to be remembered, where they are not those that were copied.
    """

    copied: Copied
    sent: int
    in_place: bool = True
    temporary: RelPath | None = None
    numbers: tuple[int, ...] = ()
    undo: RelPath | None = None
    renewed: Blocks | None = None

    @property
    def is_behind(self) -> bool:
        """Whether the time was up before the end of the file, or it grew by too much meanwhile."""
        return _is_part(self.copied) or self.copied.whole > self.copied.size


@dataclass(frozen=True, slots=True)
class Travelling:
    """A new version that is not there when the time is up; the old one stays until it is.

    Attributes:
        copied: how far the whole copy in the temporary has come; None while nothing is written.
        steady: whether the file kept its content while it was read.
    """

    copied: Copied | None
    steady: bool


@dataclass(frozen=True, slots=True)
class AsItCame:
    """A file that came damaged and has still the bytes that came: they do not go back.

    Attributes:
        stamp: what it looks like now.
    """

    stamp: Stamp


def may_patch(known: Known) -> bool:
    """Return whether a file of the replica is sure, and large enough, to be changed in place."""
    entry = known.entry
    is_file = entry.kind is Kind.FILE and bool(entry.digest)
    return is_file and entry.size >= PATCH_FROM and is_sound(known)


def transfer(
    replica: Replica, difference: Difference, source: Source, seconds: float | None
) -> Brought | Travelling | AsItCame | None:
    """Bring the content of ``difference``; None where it changed meanwhile and must wait.

    A new or growing file ends after ``seconds`` with as much as came, and so does the way of what
    replaces an old version. A snapshot is brought to its end: no later batch has it. Raises
    NameTaken, and as ``Replica.put``.
    """
    seen = difference.seen
    with aloft(difference.path, seen.size if seen is not None else 0):
        return _transfer(replica, difference, source, seconds)


def _transfer(
    replica: Replica, difference: Difference, source: Source, seconds: float | None
) -> Brought | Travelling | AsItCame | None:
    if source.digest is not None:
        return _created(replica, difference.path, source)
    known = difference.known
    if source.frozen:
        seconds = None
    if source.so_far is not None:
        return _onwards(replica, source, source.so_far, known, seconds)
    if is_damaged_row(known) and (same := _as_it_came(difference, known, source)) is not None:
        return same
    if known is None or known.entry.kind is not Kind.FILE or not is_sound(known):
        return _whole(replica, source, known, seconds)
    try:
        return _changed(replica, difference, known, source, seconds)
    except OSError as error:
        if isinstance(error, LocalError) or error.errno not in _NO_FILE:
            raise
    # Somebody put another kind of thing there: a whole new version takes its place.
    if source.undo is not None:
        replica.remove(source.undo)
    return _whole(replica, source, known, seconds)


def _as_it_came(difference: Difference, known: Known, source: Source) -> AsItCame | None:
    """Return what is told where only the mode, the times or the name of a damaged copy changed.

    OneData may have the good bytes by now, which were late.
    """
    assert known.stamp is not None
    with on_this_machine():
        if not source.frozen and local_size(source.local) != known.stamp.size:
            return None
        found = digest_local(source.local)
    if not found.steady or found.digest not in source.damaged:
        return None
    stamp = difference.seen if source.frozen else found.before
    return None if stamp is None else AsItCame(stamp)


def _changed(
    replica: Replica, difference: Difference, known: Known, source: Source, seconds: float | None
) -> Brought | Travelling | None:
    """Bring what differs from the version that the replica has."""
    assert difference.seen is not None
    if source.undo is not None and _travels(known, difference.seen, source):
        entry = known.entry
        copied = replica.append(source.local, difference.path, entry.size, entry.digest, seconds)
        if copied is not None:
            if copied.size < entry.size:
                return Travelling(None, copied.steady)
            if copied.prefix:
                return Brought(copied, copied.size - entry.size)
            replica.truncate(difference.path, entry.size)
            return None
    if source.undo is None or source.blocks is None:
        return _same(source, known) or _replaced(replica, difference.seen, source, known, seconds)
    most = None if seconds is None else known.entry.size + _TAIL
    compared = replica.compare(source.local, known.entry.size, source.blocks, seconds, most)
    if most is not None and _is_part(compared.copied) and compared.copied.size < most:
        return Travelling(None, compared.copied.steady)
    if compared.copied.digest == known.entry.digest and compared.copied.steady:
        return Brought(compared.copied, 0, renewed=compared.renewed)
    if not (compared.copied.steady or source.frozen or compared.copied.prefix):
        return None
    numbers = _to_write(compared, known.entry.size, source.blocks.size)
    if not _is_worth_it(compared, numbers, known.entry.size, source.blocks.size):
        return _whole(replica, source, known, seconds)
    return _patched(replica, difference.path, source, known, compared, numbers, seconds)


def _created(replica: Replica, path: RelPath, source: Source) -> Brought | None:
    """Create a small new file under its own name: a third of the calls of a temporary's way."""
    try:
        copied = replica.put(source.local, path)
    except FileExistsError as error:
        raise NameTaken from error
    if copied.digest == source.digest:
        return Brought(copied, copied.size)
    # It changed since the intent told its digest: nobody could judge what stands there.
    replica.remove(path)
    copied = replica.put(source.local, source.temporary)
    return _judged(replica, source, None, copied)


def _travels(known: Known, seen: Stamp, source: Source) -> bool:
    """Whether the file only goes on where its last round ended, or grew without known blocks."""
    stamp, grown = known.stamp, seen.size - known.entry.size
    if source.frozen or stamp is None or grown <= 0:
        return False
    unchanged = replace(stamp, size=seen.size) == seen
    return unchanged or source.blocks is None or grown > _TAIL


def _same(source: Source, known: Known) -> Brought | None:
    """Return what a copy would give when the replica holds these very bytes already.

    A changed mode or time, or a file written anew with the same content, is read once locally
    instead of sent.
    """
    with on_this_machine():
        if local_size(source.local) != known.entry.size:
            return None
        found = digest_local(source.local)
    if not found.steady or found.digest != known.entry.digest:
        return None
    return Brought(Copied(found.digest, found.size, found.before, True), 0)


def _replaced(
    replica: Replica, seen: Stamp, source: Source, known: Known, seconds: float | None
) -> Brought | Travelling | None:
    """Bring a whole new version; nothing is sent of what changes faster than it can be read."""
    if seen.size >= PATCH_FROM and not source.frozen:
        none = Blocks(block_size(seen.size), b"")
        found = replica.compare(source.local, 0, none, seconds).copied
        if seconds is not None and _is_part(found):
            return Travelling(None, found.steady)
        if not found.prefix:
            return None
    return _whole(replica, source, known, seconds)


def _whole(
    replica: Replica, source: Source, known: Known | None, seconds: float | None
) -> Brought | Travelling | None:
    copied = replica.put(source.local, source.temporary, seconds)
    if seconds is not None and replaces(known) and copied.prefix and _is_part(copied):
        return Travelling(copied, copied.steady)
    return _judged(replica, source, known, copied)


def _onwards(
    replica: Replica, source: Source, so_far: Copied, known: Known | None, seconds: float | None
) -> Brought | Travelling | None:
    """Go on with a whole copy that earlier batches began; None where the file changed."""
    temporary = source.temporary
    copied = replica.append(source.local, temporary, so_far.size, so_far.digest, seconds)
    if copied is None:
        return None
    if copied.size < so_far.size:
        return Travelling(so_far, copied.steady)
    if seconds is not None and copied.prefix and _is_part(copied):
        return Travelling(copied, copied.steady)
    return _judged(replica, source, known, copied)


def replaces(known: Known | None) -> bool:
    """Return whether OneData has an old version, which stays until the new one is there."""
    return known is not None and known.entry.kind is Kind.FILE


def _is_part(copied: Copied) -> bool:
    return copied.before is not None and copied.size < copied.before.size


def _judged(
    replica: Replica, source: Source, known: Known | None, copied: Copied
) -> Brought | None:
    """Return what a whole copy brought; None, with the copy removed, of what changed meanwhile."""
    is_no_less = known is None or copied.size >= known.entry.size
    if copied.steady or source.frozen or (copied.prefix and is_no_less):
        return Brought(copied, copied.size, in_place=False, temporary=source.temporary)
    replica.remove(source.temporary)
    return None


def _to_write(compared: Compared, length: int, size: int) -> tuple[int, ...]:
    """Return the blocks that changed and those beyond the old length."""
    assert compared.copied.blocks is not None
    count = len(compared.copied.blocks.digests) // DIGEST_BYTES
    beyond = range(length // size, count) if compared.copied.size > length else ()
    return tuple(sorted({*compared.changed, *beyond}))


def _is_worth_it(compared: Compared, numbers: tuple[int, ...], length: int, size: int) -> bool:
    """Whether a patch moves fewer bytes than a whole copy; old blocks are read and written too."""
    moved = (2 * len(compared.changed) + len(numbers)) * size
    return compared.copied.size >= length and moved < compared.copied.size


def _has_length(replica: Replica, path: RelPath, length: int) -> bool:
    """Whether a file that only grew ends where what it grew by begins: else zeros lay between."""
    found = replica.look(path)
    return found is not None and found.kind is Kind.FILE and found.size == length


def _patched(
    replica: Replica,
    path: RelPath,
    source: Source,
    known: Known,
    compared: Compared,
    numbers: tuple[int, ...],
    seconds: float | None,
) -> Brought | Travelling | None:
    blocks, length = compared.copied.blocks, known.entry.size
    assert source.undo is not None
    assert source.blocks is not None
    assert blocks is not None
    undo = source.undo if compared.changed else None
    if undo is None:
        is_as_it_was = _has_length(replica, path, length)
    else:
        is_as_it_was = replica.write_undo(path, undo, length, source.blocks, compared.changed)
    if not is_as_it_was:
        # The replica's file is not what it was: the whole new version takes its place.
        return _whole(replica, source, known, seconds)
    sent = (len(compared.changed) + len(numbers)) * blocks.size
    brought = Brought(compared.copied, sent, numbers=numbers, undo=undo, renewed=compared.renewed)
    if source.frozen:
        return replace(brought, in_place=False)
    end = compared.copied.size
    try:
        is_patched = replica.patch(source.local, path, blocks, numbers, end, compared.kept)
    except LocalError:  # it is of this file alone, so nobody settles the batch
        _take_back(replica, path, undo, length)
        raise
    if is_patched:
        return brought
    _take_back(replica, path, undo, length)
    return None


def _take_back(replica: Replica, path: RelPath, undo: RelPath | None, length: int) -> None:
    """Let ``path`` be what it was before it was patched."""
    if undo is None:
        replica.truncate(path, length)
    else:
        replica.undo(path, undo, length)
        replica.remove(undo)
