"""Which runs a database may name files of: those whose directories its bytes mention.

Whatever the rows of a database name in another run, they name with that run's directory. So where
its name is nowhere in the file, no row can mean anything in it.
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Iterable
from collections.abc import Set as AbstractSet

from onesync.core.model import RelPath, lies_in, name_of
from onesync.local import on_this_machine

_HEADER_BYTES = 100
_PAGE_SIZE, _ENCODING = slice(16, 18), slice(56, 60)
_UTF8 = 1
_LARGEST_PAGE = 65536
"""For which the header has 1, for it has two bytes."""
_MOST_PAGES = 1 << 24
"""An overflow page begins with the number of the next one: with a zero byte where none is higher,
which no page of a tree begins with."""
_NEXT_PAGE_BYTES = 4
_PLAIN = re.compile(rb"[\w.-]{4,}", re.ASCII)
"""A name that is written the same everywhere, and is not short enough to mean nothing."""


_LARGE = 64 << 20


class Published:
    """Which runs the databases in OneData mention, as far as this process saw them. One thread."""

    def __init__(self) -> None:
        """Know of none yet."""
        self._mentioned: dict[RelPath, set[RelPath]] = {}

    @on_this_machine()
    def see(self, database: RelPath, snapshot: bytes, runs: AbstractSet[RelPath]) -> None:
        """Remember which of ``runs``, all that there are, the copy mentions that was published.

        Of a large one nothing is remembered: to look through it costs more than what waits for it.
        """
        self._mentioned.pop(database, None)
        if os.stat(snapshot).st_size <= _LARGE:
            self._mentioned[database] = mentioned(snapshot, runs)

    def forget(self, path: RelPath) -> None:
        """Know nothing any more of what was at ``path`` and beneath."""
        for database in [known for known in self._mentioned if lies_in(known, {path})]:
            del self._mentioned[database]

    def names(self, database: RelPath, runs: AbstractSet[RelPath]) -> bool:
        """Whether ``database`` in OneData is known to name what lies in any of ``runs``."""
        return not self._mentioned.get(database, set()).isdisjoint(runs)

    def may_name(self, database: RelPath, run: RelPath) -> bool:
        """Whether rows of ``database`` in OneData may name what lies in ``run``."""
        known = self._mentioned.get(database)
        return known is None or not run or run in known


@on_this_machine()
def mentioned(snapshot: bytes, runs: AbstractSet[RelPath]) -> set[RelPath]:
    """Return those of ``runs`` that the database's copy at ``snapshot`` (absolute) may mention.

    Where its bytes cannot tell, that is all of them; ``b""``, what lies outside of the runs, always
    is. Raises LocalError where it cannot be read.
    """
    fd = os.open(snapshot, os.O_RDONLY)
    try:
        size = os.fstat(fd).st_size
        if size < _HEADER_BYTES:
            return set(runs)
        with mmap.mmap(fd, size, access=mmap.ACCESS_READ) as content:
            return _mentioned(content, runs)
    finally:
        os.close(fd)


def _mentioned(content: mmap.mmap, runs: AbstractSet[RelPath]) -> set[RelPath]:
    page_size = int.from_bytes(content[_PAGE_SIZE], "big")
    page_size = _LARGEST_PAGE if page_size == 1 else page_size
    is_utf8 = int.from_bytes(content[_ENCODING], "big") in (0, _UTF8)  # 0: nothing is in it yet
    if not is_utf8 or not page_size or len(content) // page_size >= _MOST_PAGES:
        return set(runs)
    plain = {run for run in runs if _PLAIN.fullmatch(name_of(run))}
    found = {run for run in plain if content.find(name_of(run)) >= 0}
    return found | (runs - plain) | _split(content, page_size, plain - found)


def _split(content: mmap.mmap, page_size: int, runs: Iterable[RelPath]) -> set[RelPath]:
    """Return those of ``runs`` whose names may be split by the end of a page.

    What does not fit into a row's page goes on at the beginning of an overflow page.
    """
    starts: dict[bytes, set[RelPath]] = {}
    for run in runs:
        name = name_of(run)
        for number in range(1, len(name)):
            starts.setdefault(name[number:], set()).add(run)
    longest = max(map(len, starts), default=0)
    found: set[RelPath] = set()
    for page in range(page_size, len(content) if longest else 0, page_size):
        if not content[page]:
            head = content[page + _NEXT_PAGE_BYTES : page + _NEXT_PAGE_BYTES + longest]
            for length in range(1, longest + 1):
                found |= starts.get(head[:length], set())
    return found


def linked(links: Iterable[tuple[RelPath, bytes]], runs: AbstractSet[RelPath]) -> set[RelPath]:
    """Return the paths of those of ``links`` (path, target) that lead into one of ``runs``.

    A link that leads from one run into another has the other one's directory in its target.
    """
    names = {name_of(run) for run in runs}
    return {path for path, target in links if not names.isdisjoint(target.split(b"/"))}
