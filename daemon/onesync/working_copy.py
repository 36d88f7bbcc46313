"""The working copy as a whole: is it still the same one, may it be reused, how is it cleaned.

Nothing here ever removes a file that is not, byte for byte and to the nanosecond, what the index
says that OneData holds.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from onesync.beneath import open_beneath
from onesync.core.model import (
    Entry,
    Kind,
    Known,
    RelPath,
    Stamp,
    join,
    name_of,
    parent_of,
    show,
)
from onesync.core.plan import Difference
from onesync.errors import DeployedElsewhere, Halted
from onesync.index import Index
from onesync.local import digest_local
from onesync.scanner import Scanner
from onesync.sidecars import Sidecars
from onesync.snapshot import may_be_database

log = logging.getLogger(__name__)

T = TypeVar("T")

_NAMED = 5
_PLACE = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY)
"""What answers for an entry that this user may not remove, or that others mounted something on."""


@dataclass(slots=True)
class Cleaned:
    """What ``clean`` did: how many entries went, and which are not known, or may not be removed."""

    removed: int = 0
    kept: list[RelPath] = field(default_factory=list)


@contextmanager
def owned(root: bytes) -> Iterator[None]:
    """Hold the working directory against every other onesync of this node.

    The kernel frees it with the process, for no child inherits the descriptor. A directory that is
    gone is nobody's. Raises DeployedElsewhere where another onesync has it.
    """
    try:
        fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield
        return
    try:
        _own(root, fd)
        yield
    finally:
        os.close(fd)


def _own(root: bytes, fd: int) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise DeployedElsewhere(
            f"Another onesync of this node uses the working directory {show(root)}; nothing was"
            " changed. Stop it first, or give each its own working_dir."
        ) from None
    except OSError as error:  # a file system without locks
        log.warning(
            "the working directory cannot be locked, a second onesync there would not be noticed",
            extra={"reason": error.strerror},
        )


def refuse_foreign(root: bytes) -> None:
    """Raise Halted unless the directory is empty."""
    if os.listdir(root):
        raise Halted(
            f"The working directory {show(root)} is not empty and not onesync's; nothing was"
            " changed. Empty it or name another one."
        )


def reuse(
    root: bytes,
    index: Index,
    scanner: Scanner,
    tree: Mapping[RelPath, Entry],
    sidecars: Sidecars,
) -> dict[RelPath, Stamp]:
    """Make a cleanly undeployed copy ready for stage-in.

    What the manifest's ``tree`` holds differently now is removed, the rest stays and is not copied
    again. Returns the stamps of databases that nobody wrote to since: OneData has their snapshots,
    and their own bytes are not needed. Raises Halted, before anything is removed, when files were
    edited after the undeploy.
    """
    differences = scanner.scan((), [b""])
    edits = {path for path, found in differences.items() if path and _is_edit(root, found)}
    left = _beside_databases(root, index, sidecars)
    for path, (known, beside) in left.items():
        if sidecars.is_as_pushed(path, known.entry.digest):
            edits -= {path, *beside}
        else:
            edits |= {path, *beside}
    if edits:
        edited = sorted(edits)
        named = ", ".join(show(path) for path in edited[:_NAMED])
        raise Halted(
            f"{len(edited)} files in the working directory changed after the last undeploy, or"
            " could not be sent before it"
            f" ({named}{', …' if len(edited) > _NAMED else ''}); nothing was overwritten. Move them"
            " away, then start again."
        )
    unwritten: dict[RelPath, Stamp] = {}
    for path, known in index.upwards():
        entry, now = known.entry, tree.get(path)
        gone = now is None or now.kind is not entry.kind
        if gone or (entry.kind is not Kind.DIRECTORY and now != entry):
            if path in left:
                _remove_all(root, left[path][1])
                del sidecars.beside[path]
            _remove(root, path, entry.kind)
        elif known.stamp and path not in differences and may_be_database(root, path, entry):
            unwritten[path] = known.stamp
    return unwritten


def clean(root: bytes, index: Index, spool: Path, told: Callable[[int], None]) -> Cleaned:
    """Remove what OneData holds, each entry compared with the index just before.

    ``spool`` is for snapshots of databases that have sidecars. ``told`` is called with the number
    removed so far. May be interrupted and done again.
    """
    cleaned = Cleaned()
    if not os.path.lexists(root):
        return cleaned  # gone with all that was in it
    scanner = Scanner(root, index, lambda _: False)
    with closing(Sidecars(root, spool)) as sidecars:
        _clean(root, index, scanner, sidecars, cleaned, told)
    cleaned.kept += [os.fsencode(name) for name in os.listdir(root)]
    cleaned.kept = sorted(set(cleaned.kept))
    return cleaned


def _clean(
    root: bytes,
    index: Index,
    scanner: Scanner,
    sidecars: Sidecars,
    cleaned: Cleaned,
    told: Callable[[int], None],
) -> None:
    left = _beside_databases(root, index, sidecars)
    for path, known in index.upwards():
        try:
            seen = _with_room(root, path, partial(scanner.look, path))
            if seen is None:
                continue
            beside = left[path][1] if path in left else []
            if not _is_known(known, seen) or not _is_pushed(path, known, beside, sidecars):
                cleaned.kept += [path, *beside]
                continue
            _remove_all(root, beside)  # before it: alone they would belong to nothing
            if _remove(root, path, known.entry.kind):
                cleaned.removed += 1
                told(cleaned.removed)
        except OSError as error:
            if error.errno not in _REFUSED:
                raise
            cleaned.kept.append(path)  # or the lock would be held for it for ever


def _beside_databases(
    root: bytes, index: Index, sidecars: Sidecars
) -> dict[RelPath, tuple[Known, list[RelPath]]]:
    """Return the rows of databases that have sidecars, with those that have no rows."""
    found = {}
    for path, names in sidecars.beside.items():
        known = index.known(path)
        beside = [name for name in names if index.known(name) is None]
        if known is not None and beside and may_be_database(root, path, known.entry):
            found[path] = (known, beside)
    return found


def _is_pushed(path: RelPath, known: Known, beside: list[RelPath], sidecars: Sidecars) -> bool:
    return not beside or sidecars.is_as_pushed(path, known.entry.digest)


def _remove_all(root: bytes, paths: Iterable[RelPath]) -> None:
    for path in paths:
        _remove(root, path, Kind.FILE)


def _is_known(known: Known, seen: Stamp) -> bool:
    """Whether what stands there is what OneData holds; a directory's time is not work."""
    both_directories = seen.kind is Kind.DIRECTORY is known.entry.kind
    return both_directories or seen == known.stamp


def _is_edit(root: bytes, difference: Difference) -> bool:
    seen, known = difference.seen, difference.known
    if seen is None or seen.kind is Kind.DIRECTORY:
        return False  # removed ones come back; a directory's time is not work
    return known is None or not _same_content(root, difference.path, known, seen)


def _same_content(root: bytes, path: RelPath, known: Known, seen: Stamp) -> bool:
    """Whether only the stamp differs, as after a change of owner or a restored disk."""
    entry = known.entry
    same = (seen.kind, seen.target) == (entry.kind, entry.target)
    if not same or entry.kind is Kind.LINK:
        return same
    # Whoever opens a database may roll it back, to what its snapshot is.
    is_dated = seen.mtime_ns == entry.mtime_ns
    try:
        if seen.size != entry.size or not (is_dated or may_be_database(root, path, entry)):
            return False
        return digest_local(join(root, path)).digest == entry.digest
    except OSError:
        return False


def _with_room(root: bytes, path: RelPath, act: Callable[[], T]) -> T:
    """Do ``act``; where what lies above ``path`` is closed to us and ours, open it first."""
    try:
        return act()
    except PermissionError:
        with suppress(OSError):  # the second try tells
            _open_up(root, parent_of(path))
        return act()


def _open_up(root: bytes, path: RelPath) -> None:
    """Let us in, and write, in the directories of ours from the root down to ``path``."""
    place = os.open(root, _PLACE)
    try:
        for part in (b".", *filter(None, path.split(b"/"))):
            place, above = os.open(part, _PLACE, dir_fd=place), place
            os.close(above)
            status = os.fstat(place)
            if status.st_uid == os.geteuid():
                # No other call changes the mode of a directory that we may not read.
                os.chmod(f"/proc/self/fd/{place}", stat.S_IMODE(status.st_mode) | stat.S_IRWXU)
    finally:
        os.close(place)


def _remove(root: bytes, path: RelPath, kind: Kind) -> bool:
    """Remove one entry, a directory only when it is empty; returns whether it went."""
    return _with_room(root, path, partial(_try_to_remove, root, path, kind))


def _try_to_remove(root: bytes, path: RelPath, kind: Kind) -> bool:
    top = os.open(root, _PLACE)
    try:
        parent = open_beneath(top, parent_of(path), os.O_PATH | os.O_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return False  # a link stands above it now: what lies behind that is not ours
    finally:
        os.close(top)
    try:
        (os.rmdir if kind is Kind.DIRECTORY else os.unlink)(name_of(path), dir_fd=parent)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False  # something that is not ours to remove is in it
    finally:
        os.close(parent)
    return True
