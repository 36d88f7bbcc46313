"""What was pushed, and is not yet known to have arrived.

OneData's client may lose its connection, drop what it buffered and still answer every call with
success. So the index remembers which files were pushed since the last verified checkpoint, until
some seconds later OneData itself says that it has all their bytes, or they were read back. After a
connection error, and where an earlier life of the daemon left some, all of them are read back
before anything more is pushed; after a connection error also, between the batches, what was only
believed, for the mount cannot tell. Engine's thread only.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

from onesync.core.model import (
    STATUS_FOLDER,
    Entry,
    Kind,
    Known,
    RelPath,
    is_sound,
    is_unconfirmed,
    join,
    lies_in,
    parent_of,
    show,
)
from onesync.errors import NotArrived, OnesyncError
from onesync.index import Index
from onesync.replica.door import Listed, Replica

log = logging.getLogger(__name__)

_REST_SECONDS = 3.0
"""What OneData says of a file sooner after it was closed is only what its client believes."""
_ROUND_SECONDS = 30.0
_SLICE = 500
_ASKED_AT_ONCE = 25
_READ_SLICE = 100
"""So many are read back before that is remembered: what comes in their way costs no more."""
_LATE_SECONDS = 60.0
"""A file of which OneData does not say in time that it has it all is read back."""
_ASK_AGAIN_SECONDS = 1.0
_READ_AT_ONCE = 256 << 20
_READ_TRIES = 3
_PROBE = join(STATUS_FOLDER, b"no-such-name")


@dataclass(slots=True)
class Unverified:
    """The files of the index's table ``unverified``. The fields are its parts.

    Attributes:
        now: seconds on CLOCK_BOOTTIME.
        suspected: whether all are to be read back before anything more is pushed.
    """

    replica: Replica
    index: Index
    pool: ThreadPoolExecutor
    now: Callable[[], float]
    suspected: bool = False
    _closed: dict[RelPath, float] = field(default_factory=dict)
    _late: dict[RelPath, float] = field(default_factory=dict)
    _failures: dict[RelPath, int] = field(default_factory=dict)
    _next: float | None = None
    _tells: bool | None = None
    _untold: set[RelPath] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Doubt what an earlier life left: the client may have died with it."""
        self._suspect_unverified()
        if self.index.suspected(1):
            self._next = self.now()

    def pushed(self, paths: Iterable[RelPath]) -> None:
        """Remember when ``paths`` were committed; the index has them already."""
        now = self.now()
        self._closed.update(dict.fromkeys(paths, now))
        if self._next is None and self._closed:
            self._next = now + _REST_SECONDS

    def suspect(self) -> None:
        """Let everything be read back that is not verified yet, or was only believed; durable."""
        self._tells = None  # the mount may be another one
        self._suspect_unverified()
        self.index.suspect_believed()
        if self.index.suspected(1):
            self._next = self.now()

    def _suspect_unverified(self) -> None:
        if self.index.suspect():
            self.suspected = True
            self._next = self.now()

    def next_due(self) -> float | None:
        """Return the seconds until ``look`` has something to do, or None."""
        return None if self._next is None else max(0.0, self._next - self.now())

    def look(self) -> set[RelPath]:
        """Verify some files; returns those whose content is not what was pushed.

        They are doubted in the index. Raises OSError or MountNotThere where the mount fails.
        """
        is_free = not self.suspected
        rows = self._ripe()
        late = self._late_ones([path for path, is_read in rows.items() if not is_read])
        read = {path for path, is_read in rows.items() if is_read or self._is_overdue(path, late)}
        entries = {path: entry for path in read if (entry := self._entry(path)) is not None}
        differing = self.doubt(self._differing(entries))
        verified = rows.keys() - (late - read)
        believed = verified - read if self._tells is False else set()
        self.index.believe(believed)
        self.index.verified(verified - believed)
        for known in (self._closed, self._late, self._failures):
            for path in verified:
                known.pop(path, None)
        began = self.now()
        if is_free:
            differing |= self._read_suspected()
        self._plan_next(full=len(rows) == _SLICE, rest=self.now() - began)
        return differing

    def arrive(self, entries: Mapping[RelPath, Entry], pause: Callable[[float], None]) -> bool:
        """Wait until OneData has ``entries``, which took the place of older bytes just now.

        Those are kept until the checkpoint stands, no longer. A mount that cannot tell is believed,
        if its provider answers at all. Returns whether OneData said so of all. Raises NotArrived
        where it does not in time, and one reads back as something else. One that is huge, or
        cannot be read though it was tried again and again, stays unverified.
        """
        began = self.now()
        late = {path for path, entry in entries.items() if entry.size}  # nothing arrives of others
        while late - self._untold and self._can_tell(min(late)):
            pause(_ASK_AGAIN_SECONDS)
            if self.now() - began >= _REST_SECONDS:
                late = self._arrived(sorted(late)) or set()
            if self.now() - began >= _LATE_SECONDS:
                break
        if self._tells is not True:
            self.replica.look(_PROBE)
            return False
        # To read back what is huge, and may only be on its way, would hold up all others.
        read = {p: entries[p] for p in late if entries[p].size <= _READ_AT_ONCE}
        differing = self._differing(read)
        lost = {path for path in differing if not self._failures.get(path)}
        if lost:
            raise NotArrived(
                f"{show(min(lost))} took the place of an older version, and OneData does not have"
                " all of it; nothing was committed, the batch is done again."
            )
        # Of a file with holes OneData may never say so: it is not waited for again.
        self._untold |= late
        return not late

    def finish(self, pause: Callable[[float], None]) -> set[RelPath]:
        """Verify all that is left, waiting as long as that takes; returns as ``look`` does."""
        differing: set[RelPath] = set()
        while left := self.index.unverified(1):
            if not self._can_tell(left[0][0]):
                self._closed.clear()  # nobody is asked, so nothing has to be waited for
            elif not self._ripe() or self._late:
                pause(_ASK_AGAIN_SECONDS)
            differing |= self.look()
        while self.index.suspected(1):
            differing |= self._read_suspected()
        return differing

    def _read_suspected(self) -> set[RelPath]:
        """Read back some of what was believed before a connection was lost, or one that is huge."""
        some: list[RelPath] = []
        size = 0
        for path in self.index.suspected(_READ_SLICE):
            size += entry.size if (entry := self._entry(path)) else 0
            if some and size > _READ_AT_ONCE:
                break
            some.append(path)
        return self._read_back(some)

    def read_believed(self, told: Callable[[int, int], None]) -> set[RelPath]:
        """Read back what a mount that cannot tell was believed; returns as ``look`` does.

        Nothing else says that OneData has it, and nobody may be able to send it again. What has
        another size is left to ``find_lost``. ``told`` is called with the number read so far and
        that of all.
        """
        paths = self.index.believed()
        if paths:
            log.info("what no mount told of is read back", extra={"files": len(paths)})
        differing: set[RelPath] = set()
        for number in range(0, len(paths), _READ_SLICE):
            some = paths[number : number + _READ_SLICE]
            differing |= self._read_back(some, is_before_cleaning=True)
            told(number + len(some), len(paths))
        return differing

    def _read_back(self, paths: list[RelPath], *, is_before_cleaning: bool = False) -> set[RelPath]:
        """Read files back, and remember that; returns as ``look`` does."""
        entries = {p: entry for p in paths if (entry := self._entry(p)) and entry.size}
        differing = self._differing(entries)
        if is_before_cleaning:
            differing = {path for path in differing if self._has_size(path, entries[path].size)}
        differing = self.doubt(differing)
        self.index.verified(paths)
        for path in paths:
            self._failures.pop(path, None)
        return differing

    def _has_size(self, path: RelPath, size: int) -> bool:
        found = self.replica.look(path)
        return found is not None and found.kind is Kind.FILE and found.size == size

    def find_lost(
        self,
        is_cleaned: Callable[[RelPath], bool],
        left_of: Callable[[RelPath, int], set[str]],
        told: Callable[[int, int], None],
    ) -> set[RelPath]:
        """Look up every file that OneData should hold; returns those that it lost, whoever did it.

        Only what cleaning would remove (``is_cleaned``) is missed: what is not in the working copy
        any more cannot be sent, and what is another one stays there. ``left_of`` returns the
        digests that so many bytes of a file may have of which the rest was lost. ``told`` is called
        with the number of rows done so far and that of all. Raises OnesyncError where something
        else took the place of a file, or it is longer or another one: it is not overwritten.
        """
        lost: set[RelPath] = set()
        taken: set[RelPath] = set()
        shorter: dict[RelPath, int] = {}
        for path, entry, found in self._looked_up(told):
            if found is None:
                lost.add(path)
            elif found.kind is not Kind.FILE or found.size > entry.size:
                taken.add(path)
            elif found.size < entry.size:
                shorter[path] = found.size
        lost, taken = set(filter(is_cleaned, lost)), set(filter(is_cleaned, taken))
        for path in filter(is_cleaned, shorter):
            is_left = has_one_of(self.replica, path, left_of(path, shorter[path]))
            (lost if is_left else taken).add(path)
        above = self._look_above(lost).items()
        taken |= {path for path, found in above if found and found.kind is not Kind.DIRECTORY}
        lost = {path for path in lost if not lies_in(path, taken)}
        if taken and not lost:
            raise OnesyncError(
                f"{show(min(taken))} is something else in OneData than what was pushed there; it"
                " was not touched: move it away in OneData, or set undeploy.clean_working_dir ="
                " false"
            )
        return lost

    def _looked_up(
        self, told: Callable[[int, int], None]
    ) -> Iterator[tuple[RelPath, Entry, Listed | None]]:
        """Yield what stands under the name of each file: no listing is evidence."""
        rows, done, total = self.index.upwards(), 0, self.index.count()
        while some := list(islice(rows, _SLICE)):
            held = {path: known.entry for path, known in some if _is_held(known)}
            found = self.pool.map(self.replica.look, held)
            yield from zip(held, held.values(), found, strict=True)
            done += len(some)
            told(done, total)

    def doubt(self, differing: set[RelPath]) -> set[RelPath]:
        """Let what OneData does not hold as it was pushed be sent anew by the next batch.

        Returns it, and the directories above it that are gone: they must be made first.
        """
        gone = {path for path, found in self._look_above(differing).items() if found is None}
        for path in sorted(differing):
            log.warning("OneData does not hold what was pushed", extra={"path": show(path)})
        for path in differing:
            self.index.doubt(path)
        for path in gone:
            if parent_of(path) not in gone:
                self.index.doubt_tree(path)
        return differing | gone

    def _look_above(self, paths: set[RelPath]) -> dict[RelPath, Listed | None]:
        """Look up the directories of ``paths``, and what is above those that are not there."""
        looked: dict[RelPath, Listed | None] = {}
        while above := sorted({parent_of(path) for path in paths} - looked.keys() - {b""}):
            looked.update(zip(above, self.pool.map(self.replica.look, above), strict=True))
            paths = {path for path in above if looked[path] is None}
        return looked

    def _can_tell(self, path: RelPath) -> bool:
        if self._tells is None:
            self._arrived([path])
        return self._tells is True

    def _ripe(self) -> dict[RelPath, bool]:
        """Return some files whose time has come, and whether each is read back."""
        if not self.suspected:
            limit = self.now() - _REST_SECONDS
            young = sum(closed > limit for closed in self._closed.values())
            rows = self.index.unverified(young + _SLICE)
            ripe = (row for row in rows if self._closed.get(row[0], limit) <= limit)
            return dict(islice(ripe, _SLICE))
        return dict(self.index.unverified(_SLICE))

    def _plan_next(self, *, full: bool, rest: float) -> None:
        """Plan the next look; half of the time what is ``suspected`` rests, others are pushed."""
        if full:
            self._next = self.now()
            return
        self.suspected = False
        if self.index.suspected(1):
            self._next = self.now() + rest
            return
        self._next = self.now() + _ROUND_SECONDS if self.index.unverified(1) else None

    def _late_ones(self, paths: list[RelPath]) -> set[RelPath]:
        """Return those of ``paths`` that OneData does not say it has as a whole."""
        if not paths:
            return set()
        late = self._arrived(paths) if self._tells is not False else None
        if late is None:
            # Nobody vouches for the bytes; but a connection that was lost shows itself where the
            # provider must be asked, as it must for a name that does not exist.
            self.replica.look(_PROBE)
            return set()
        now = self.now()
        self._late = {path: self._late.get(path, now) for path in late}
        return late

    def _arrived(self, paths: list[RelPath]) -> set[RelPath] | None:
        """Return which of ``paths`` did not arrive; None where the mount cannot tell."""
        parts = [paths[n : n + _ASKED_AT_ONCE] for n in range(0, len(paths), _ASKED_AT_ONCE)]
        late: set[RelPath] = set()
        for part, answer in zip(parts, self.pool.map(self.replica.arrived, parts), strict=True):
            self._tells = answer is not None
            if answer is None:
                return None
            late |= {path for path, arrived in zip(part, answer, strict=True) if not arrived}
        return late

    def _is_overdue(self, path: RelPath, late: set[RelPath]) -> bool:
        return path in late and self.now() - self._late[path] > _LATE_SECONDS

    def _differing(self, entries: Mapping[RelPath, Entry]) -> set[RelPath]:
        found = self.pool.map(self._differs, entries, entries.values())
        return {path for path, differs in zip(entries, found, strict=True) if differs}

    def _entry(self, path: RelPath) -> Entry | None:
        """Return what OneData should hold; None of what is sent anew anyhow, or cannot be.

        This node has no good copy of what came damaged, and none at all of what it never had.
        """
        known = self.index.known(path)
        if known is None or known.entry.kind is not Kind.FILE or not is_sound(known):
            return None
        return known.entry

    def _differs(self, path: RelPath, entry: Entry) -> bool:
        try:
            return self.replica.digest(path) != (entry.digest, entry.size)
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError as error:
            if error.errno == errno.EISDIR:
                return False  # somebody put a directory there: it is not ours any more
            # One file that cannot be read must not hold up all others for ever.
            self._failures[path] = self._failures.get(path, 0) + 1
            if self._failures[path] < _READ_TRIES:
                raise
            return True


def has_one_of(replica: Replica, path: RelPath, digests: set[str]) -> bool:
    """Return whether a file in OneData has one of ``digests``, or is gone meanwhile."""
    try:
        return replica.digest(path)[0] in digests
    except (FileNotFoundError, NotADirectoryError):
        return True


def _is_held(known: Known) -> bool:
    """Whether a row is of a file that OneData holds as it says: not sent anew, nor come damaged."""
    is_committed = known.entry.kind is Kind.FILE and not is_unconfirmed(known.entry)
    return is_committed and is_sound(known)
