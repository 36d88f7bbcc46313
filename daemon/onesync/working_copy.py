"""The working copy as a whole: is it still the same one, may it be reused, how is it cleaned.

Nothing here ever removes a file that is not, byte for byte and to the nanosecond, what the index
says that OneData holds: each is looked at just before.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
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
    is_user_path,
    join,
    name_of,
    parent_of,
    show,
)
from onesync.core.ordering import SIDECARS
from onesync.core.plan import Difference
from onesync.errors import DeployedElsewhere, Halted
from onesync.index import Index
from onesync.local import digest_local, open_source, read_xattrs, stamp_of
from onesync.scanner import Scanner
from onesync.sidecars import Sidecars
from onesync.snapshot import may_be_database, traces_of

log = logging.getLogger(__name__)

T = TypeVar("T")

_NAMED = 5
_PLACE = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY, errno.EIO)
"""What answers for an entry that this user may not remove, or that others mounted something on.

Or that the disk does not give: of that nobody knows what it is.
"""


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
    edited after the undeploy; one that is edited meanwhile is kept, and told of so too.
    """
    differences = scanner.scan((), [b""])
    removal = _Removal(root, index, sidecars)
    edits = set(_look_at_outdated(removal, index, tree, differences))
    edits |= {path for path, found in differences.items() if path and _is_edit(root, found)}
    left = _beside_databases(root, index, sidecars)
    for path, (known, beside) in left.items():
        if sidecars.is_as_pushed(path, known.entry.digest):
            edits -= {path, *beside}
        else:
            edits |= {path, *beside}
    _refuse_edited(edits)
    unwritten: dict[RelPath, Stamp] = {}
    for path, known in index.upwards():
        if _is_outdated(known.entry, tree.get(path)):
            found = differences.get(path)
            removal.remove(path, known if found is None else Known(known.entry, found.seen))
            if path in left:
                del sidecars.beside[path]
        elif known.stamp and path not in differences and may_be_database(root, path, known.entry):
            unwritten[path] = known.stamp
    _refuse_edited(removal.kept)
    return unwritten


def _is_outdated(entry: Entry, now: Entry | None) -> bool:
    """Whether the manifest has something else ``now``; of a directory it has but what is in it."""
    gone = now is None or now.kind is not entry.kind
    return gone or (entry.kind is not Kind.DIRECTORY and now != entry)


def _look_at_outdated(
    removal: _Removal,
    index: Index,
    tree: Mapping[RelPath, Entry],
    differences: dict[RelPath, Difference],
) -> Iterator[RelPath]:
    """Add to the ``differences`` what a scan does not see of all that is to be removed.

    It leaves out what was excluded since, and what lies in a directory that cannot be listed.
    Yields what cannot be looked at.
    """
    for path, known in index.upwards():
        if path in differences or not _is_outdated(known.entry, tree.get(path)):
            continue
        try:
            seen = removal.look(path)
        except OSError as error:
            if error.errno not in _REFUSED:
                raise
            yield path
        else:
            if seen is not None and seen != known.stamp:
                differences[path] = Difference(path, known, seen)


def _refuse_edited(edits: Collection[RelPath]) -> None:
    """Raise Halted where there are any."""
    if not edits:
        return
    named = ", ".join(show(path) for path in sorted(edits)[:_NAMED])
    raise Halted(
        f"{len(edits)} files in the working directory changed after the last undeploy, could not be"
        " sent before it, or may not be removed"
        f" ({named}{', …' if len(edits) > _NAMED else ''}); nothing was overwritten. Move them"
        " away, then start again."
    )


def clean(root: bytes, index: Index, spool: Path, told: Callable[[int], None]) -> Cleaned:
    """Remove what OneData holds, each entry compared with the index just before.

    ``spool`` is for snapshots of databases that have sidecars. ``told`` is called with the number
    removed so far. May be interrupted and done again.
    """
    cleaned = Cleaned()
    if not os.path.lexists(root):
        return cleaned  # gone with all that was in it
    with closing(Sidecars(root, spool)) as sidecars:
        removal = _Removal(root, index, sidecars)
        for path, known in index.upwards():
            if removal.remove(path, known):
                cleaned.removed += 1
                told(cleaned.removed)
    kept = {*removal.kept, *(os.fsencode(name) for name in os.listdir(root))}
    cleaned.kept = sorted(kept)
    return cleaned


class _Removal:
    """Removes what stands as it is known, each entry looked at just before.

    Attributes:
        kept: what is not as it is known, with all beside it, or may not be removed.
    """

    def __init__(self, root: bytes, index: Index, sidecars: Sidecars) -> None:
        self._root = root
        self._index = index
        self._sidecars = sidecars
        self._scanner = Scanner(root, index, lambda _: False)
        self._since: dict[Stamp, Stamp] = {}
        """How what has several names stands since one of them went, by its stamp before."""
        self.kept: list[RelPath] = []

    def look(self, path: RelPath) -> Stamp | None:
        """Look at one path, whatever is excluded; what lies above it may be opened for that."""
        return _with_room(self._root, path, partial(self._scanner.look, path))

    def remove(self, path: RelPath, known: Known) -> bool:
        """Remove what stands there if it is as it is ``known``, or keep it; returns if it went.

        A database goes with what lies beside it, a directory when it is empty.
        """
        try:
            return self._remove(path, known)
        except OSError as error:
            if error.errno not in _REFUSED:
                raise
            self.kept.append(path)  # or the lock would be held for it for ever
            return False

    def _remove(self, path: RelPath, known: Known) -> bool:
        seen = self.look(path)
        if seen is None:
            return False
        if seen.kind is Kind.DIRECTORY is known.entry.kind:
            return self._take(path, seen)  # what is left in it is not ours to remove
        beside = self._beside(path, known.entry)
        if self._is_known(path, known, seen) and self._take_beside(path, known.entry, beside):
            went = self._take(path, seen, known.stamp)
        else:
            went = False
        if not went:
            self.kept += (place for place in (path, *beside) if self.look(place) is not None)
        return went

    def _is_known(self, path: RelPath, known: Known, seen: Stamp) -> bool:
        """Whether what stands there is what OneData holds; of a link that is its target alone."""
        entry, stamp = known.entry, known.stamp
        if stamp is None or Kind.LINK in (seen.kind, entry.kind):
            return seen.kind is Kind.LINK and (seen.kind, seen.target) == (entry.kind, entry.target)
        is_same = seen == self._since.get(stamp, stamp)
        return is_same or self._has_lost_names(path, entry, stamp, seen)

    def _has_lost_names(self, path: RelPath, entry: Entry, stamp: Stamp, seen: Stamp) -> bool:
        """Whether nothing but other names of a file went, as where an earlier cleaning ended."""
        if not stamp.linked or replace(seen, ctime_ns=stamp.ctime_ns, linked=True) != stamp:
            return False
        # Attributes that were changed leave no other trace than the ctime does.
        try:
            found = digest_local(join(self._root, path))
            xattrs = _xattrs_of(join(self._root, path))
        except OSError:
            return False
        return (found.digest, xattrs, found.before) == (entry.digest, entry.xattrs, seen)

    def _beside(self, path: RelPath, entry: Entry) -> list[RelPath]:
        """Return what stands beside a database and has no row, also where no listing told of it."""
        if not may_be_database(self._root, path, entry):
            return []
        names = (path + suffix for suffix in SIDECARS)
        return [name for name in names if is_user_path(name) and self._is_beside(name)]

    def _is_beside(self, name: RelPath) -> bool:
        if self._index.known(name) is not None:
            return False
        seen = self.look(name)
        return seen is not None and seen.kind is not Kind.DIRECTORY

    def _take_beside(self, path: RelPath, entry: Entry, beside: list[RelPath]) -> bool:
        """Remove what stands beside a database, before it: alone it would belong to nothing."""
        if not beside:
            return True
        database = join(self._root, path)
        before = traces_of(database)
        is_as_pushed = self._sidecars.is_as_pushed(path, entry.digest)
        if not is_as_pushed or traces_of(database) != before:
            return False
        stand = ((name, self.look(name)) for name in beside)
        return all(seen is None or self._take(name, seen) for name, seen in stand)

    def _take(self, path: RelPath, seen: Stamp, stamp: Stamp | None = None) -> bool:
        """Remove what stands as ``seen``; the row has ``stamp``. Returns whether it went."""
        return _with_room(self._root, path, partial(self._try_to_take, path, seen, stamp))

    def _try_to_take(self, path: RelPath, seen: Stamp, stamp: Stamp | None) -> bool:
        parent = _open_parent(self._root, path)
        if parent is None:
            return False
        try:
            if seen.kind is not Kind.DIRECTORY:
                return self._unlink(parent, name_of(path), seen, stamp)
            os.rmdir(name_of(path), dir_fd=parent)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            return False  # something that is not ours to remove is in it
        finally:
            os.close(parent)
        return True

    def _unlink(self, parent: int, name: bytes, seen: Stamp, stamp: Stamp | None) -> bool:
        """Unlink what is as ``seen``. What that changes of its other names is no edit of theirs."""
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=parent)
        try:
            if stamp_of(os.fstat(fd), seen.kind, seen.target) != seen:
                return False
            os.unlink(name, dir_fd=parent)
            now = stamp_of(os.fstat(fd), seen.kind, seen.target)
        finally:
            os.close(fd)
        if stamp is not None:
            self._since.pop(stamp, None)
            if seen.linked and replace(now, ctime_ns=seen.ctime_ns, linked=True) == seen:
                self._since[stamp] = now
        return True


def _xattrs_of(source: bytes) -> tuple[tuple[bytes, bytes], ...]:
    fd = open_source(source)
    try:
        return read_xattrs(fd)
    finally:
        os.close(fd)


def _open_parent(root: bytes, path: RelPath) -> int | None:
    """Open what ``path`` lies in; None where that is no directory of ours any more."""
    top = os.open(root, _PLACE)
    try:
        return open_beneath(top, parent_of(path), os.O_PATH | os.O_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return None  # a link stands above it now: what lies behind that is not ours
    finally:
        os.close(top)


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
