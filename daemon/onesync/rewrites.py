"""Finds what was written although its stamp is the one that was pushed.

The kernel dates a file once for all that is written within a tick of its clock, and once for all
that is stored into a mapped page before that page goes to the disk. What is pushed in between has
the stamp of what comes after it: only the kernel's word that somebody wrote, or closed what he
could write to, tells that there may be more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from onesync.core.model import Kind, Known, RelPath, Stamp, is_damaged_row, join, renamed_path
from onesync.core.trouble import Reaction, judge_source
from onesync.index import Index
from onesync.local import digest_local
from onesync.scanner import Scanner

_SMALL = 1 << 20
"""A larger file is not read here: the push compares it, in rounds and beside others."""


@dataclass(slots=True)
class Rewrites:
    """Looks beneath the absolute path ``root``. Engine's thread only."""

    root: bytes
    index: Index
    scanner: Scanner
    _gone: set[RelPath] = field(default_factory=set)

    def find(
        self, written: AbstractSet[RelPath], moves: Iterable[tuple[RelPath, RelPath]]
    ) -> set[RelPath]:
        """Return the rows of ``written`` files, all their names, that may hold something else.

        They have no stamp any more, durably: a scan tells of them until they are pushed, also under
        another name. ``moves`` are the renames that the index does not know yet. What does not
        stand there may have been renamed without that being told yet: it is looked for again with
        the next call, until ``all_is_told``. Raises OSError where a file cannot be read.
        """
        forward = dict(moves)
        back = {target: source for source, target in forward.items()}
        found: set[RelPath] = set()
        doubted: set[RelPath] = set()
        written, self._gone = written | self._gone, set()
        for path in written:
            row, place = renamed_path(path, back), renamed_path(path, forward)
            known = self.index.known(row)
            if known is None:
                continue
            seen = self.scanner.see(place)
            is_damaged = is_damaged_row(known)
            if seen is None and (is_damaged or self.scanner.gone([place])):
                self._gone.add(path)  # or nobody can tell whether it is as it came
            elif seen is None or self._may_differ(known, seen, place):
                names = doubted if is_damaged else found
                names.update(self._names(row, known))
        self.index.lose_stamps(found)
        for path in doubted:  # the replica's bytes are others than its row's: it is sent whole
            self.index.doubt(path)
        return found | doubted

    def all_is_told(self) -> None:
        """Look no more for what is gone: the kernel's events were all heard."""
        self._gone.clear()

    def _may_differ(self, known: Known, seen: Stamp, place: RelPath) -> bool:
        entry, stamp = known.entry, known.stamp
        if entry.kind is not Kind.FILE or not entry.digest or stamp is None:
            return False
        if seen != stamp:
            return False
        if is_damaged_row(known):
            # What came damaged from OneData must not go back as if somebody had written it; of
            # all else that nobody can read who sends it says so.
            return not self._is(place, self.index.came_damaged, where_unread=True)
        return entry.size > _SMALL or not self._is(place, entry.digest.__eq__, where_unread=False)

    def _is(self, place: RelPath, is_known: Callable[[str], bool], *, where_unread: bool) -> bool:
        try:
            return is_known(digest_local(join(self.root, place)).digest)
        except (FileNotFoundError, NotADirectoryError, InterruptedError):
            return True  # it went, or is something else now: the kernel tells of that
        except OSError as error:
            if judge_source(error).reaction is not Reaction.PATH:
                raise
            return where_unread

    def _names(self, row: RelPath, known: Known) -> Iterator[RelPath]:
        yield row
        if known.stamp is not None and known.stamp.linked:
            yield from (path for path, _ in self.index.by_inode(known.stamp.inode))
