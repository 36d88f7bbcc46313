"""What a database may name: what its bytes mention.

Whatever the rows of a database name in another run, they name with that run's directory. So where
its name is nowhere in the file, no row can mean anything in it; and where it stands, what follows
tells which file is meant. A row that names a directory says nothing of the files in it.
"""

from __future__ import annotations

import mmap
import os
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager

from onesync.core.model import RelPath, join, lies_in, name_of, parent_of
from onesync.core.ordering import RUNS, run_of
from onesync.local import on_this_machine

_HEADER_BYTES = 100
_PAGE_SIZE, _RESERVED, _ENCODING = slice(16, 18), slice(20, 21), slice(56, 60)
_UTF8 = 1
_LARGEST_PAGE = 65536
"""For which the header has 1, for it has two bytes."""
_MOST_PAGES = 1 << 24
"""An overflow page begins with the number of the next one: with a zero byte where none is higher,
which no page of a tree begins with."""
_NEXT_PAGE_BYTES = 4
_FOLLOWS = re.compile(rb"[\w./-]*", re.ASCII)
_FOLLOWS_BYTES = 512
_PLAIN = re.compile(rb"[\w.-]{4,}", re.ASCII)
"""A name that is written the same everywhere, and is not short enough to mean nothing."""


_LARGE = 64 << 20
_TOLD_APART = 10_000
"""Pairs of a link and what it may lead to that are looked at one by one: 30 ms."""


class Published:
    """Which runs the databases in OneData mention, as far as this process saw them. One thread."""

    def __init__(self) -> None:
        """Know of none yet."""
        self._mentioned: dict[RelPath, set[RelPath]] = {}
        self._runs: set[RelPath] = set()

    def know(self, runs: AbstractSet[RelPath]) -> None:
        """Look for ``runs`` from now on, also when they are gone: one may be made anew."""
        self._runs |= runs

    @on_this_machine()
    def see(self, database: RelPath, snapshot: bytes) -> None:
        """Remember which of the known runs the copy mentions that was published.

        Of a large one nothing is remembered: to look through it costs more than what waits for it.
        """
        self._mentioned.pop(database, None)
        if os.stat(snapshot).st_size <= _LARGE:
            self._mentioned[database] = mentioned(snapshot, by_run(self._runs))

    def forget(self, path: RelPath) -> None:
        """Know nothing any more of what was at ``path`` and beneath."""
        for database in [known for known in self._mentioned if lies_in(known, {path})]:
            del self._mentioned[database]

    def named(self, database: RelPath, runs: AbstractSet[RelPath]) -> AbstractSet[RelPath]:
        """Return those of ``runs`` that rows of ``database`` in OneData may name.

        What lies outside of them (``b""``) counts as named by all.
        """
        known = self._mentioned.get(database)
        return runs if known is None else {run for run in runs if not run or run in known}


def by_run(paths: Iterable[RelPath]) -> dict[RelPath, set[RelPath]]:
    """Return ``paths`` by the runs that they are or lie in; ``b""`` has what lies outside."""
    found: dict[RelPath, set[RelPath]] = {}
    for path in paths:
        found.setdefault(run_of(path), set()).add(path)
    return found


def mentioned(snapshot: bytes, paths: Mapping[RelPath, AbstractSet[RelPath]]) -> set[RelPath]:
    """Return those of ``paths`` (``by_run``) that the database's copy at ``snapshot`` may mention.

    A run is mentioned where its name stands, a file where its path in the run follows that. Where
    the bytes cannot tell, that is all of them; what lies outside of the runs always is. Raises
    LocalError where the copy cannot be read.
    """
    with _opened(snapshot) as content:
        names = {name_of(run): run for run in paths}
        standing, possible = _standing(content, names.keys())
        found = {path for name in possible for path in paths[names[name]]}
        for name in standing - possible:
            found |= _behind_name(content, names[name], paths[names[name]])
        return found


def holds_name(snapshot: bytes, names: AbstractSet[bytes]) -> bool:
    """Whether any of ``names`` may stand in the database's copy; raises as ``mentioned``."""
    with _opened(snapshot) as content:
        return any(_standing(content, names))


@contextmanager
def _opened(path: bytes) -> Iterator[bytes | mmap.mmap]:
    with on_this_machine():
        fd = os.open(path, os.O_RDONLY)
        try:
            size = os.fstat(fd).st_size
            if not size:
                yield b""
                return
            with mmap.mmap(fd, size, access=mmap.ACCESS_READ) as content:
                yield content
        finally:
            os.close(fd)


def _standing(
    content: bytes | mmap.mmap, names: AbstractSet[bytes]
) -> tuple[set[bytes], set[bytes]]:
    """Return those of ``names`` that stand in ``content``, and those that may, one cannot tell."""
    page_size = _page_size_of(content)
    is_utf8 = int.from_bytes(content[_ENCODING], "big") in (0, _UTF8)  # 0: nothing is in it yet
    is_readable = is_utf8 and page_size and len(content) >= _HEADER_BYTES
    if not is_readable or len(content) // page_size >= _MOST_PAGES:
        return set(), set(names)
    plain = {name for name in names if _PLAIN.fullmatch(name)}
    standing = {name for name in plain if content.find(name) >= 0}
    return standing, {*(names - plain), *_split(content, page_size, plain)}


def _page_size_of(content: bytes | mmap.mmap) -> int:
    page_size = int.from_bytes(content[_PAGE_SIZE])
    return _LARGEST_PAGE if page_size == 1 else page_size


def _behind_name(
    content: bytes | mmap.mmap, run: RelPath, paths: AbstractSet[RelPath]
) -> AbstractSet[RelPath]:
    """Return those of ``paths``, all in ``run``, that follow its name in ``content``, or may."""
    if len(content) > _LARGE or paths == {run}:
        return paths
    name, page_size = name_of(run), _page_size_of(content)
    ends, goes_on = set[bytes](), set[bytes]()
    at = content.find(name)
    while at >= 0:
        at += len(name)
        follows = _FOLLOWS.match(content, at, at + _FOLLOWS_BYTES)
        assert follows is not None
        end = follows.end()
        # What does not fit into a page goes on in any other one: behind it is that one's number,
        # which begins with a zero byte, or nothing more of this page. What is written in another
        # way goes on with what no path is written with.
        usable = page_size - int.from_bytes(content[_RESERVED])
        is_within = 0 < end % page_size < usable
        is_over = is_within and b"\0" < content[end : end + 1] < b" "
        (ends if is_over else goes_on).add(follows.group())
        at = content.find(name, at)
    if any(b"//" in one or b"/." in one for one in ends | goes_on):
        return paths  # the same place has many names
    ordered = sorted(ends | goes_on)
    files = (path for path in paths if path != run)
    found = {path for path in files if _may_be(path[len(run) :], ends, goes_on, ordered)}
    return found | ({run} & paths)


def _may_be(
    rest: bytes, ends: AbstractSet[bytes], goes_on: AbstractSet[bytes], ordered: list[bytes]
) -> bool:
    """Whether what follows a run's name anywhere may be ``rest``, the path of a file in it.

    In a database's file another value may follow at once. What ends at a directory is no file.
    """
    place = bisect_left(ordered, rest)
    if place < len(ordered) and ordered[place].startswith(rest):
        return True
    heads = [rest[:length] for length in range(len(rest))]
    return any(
        head in goes_on or (head in ends and not _is_directory(head, rest)) for head in heads
    )


def _is_directory(head: bytes, rest: bytes) -> bool:
    if rest[len(head) : len(head) + 1] < b" ":
        return False  # a name that begins so ends the path that can be read
    return head.endswith(b"/") or rest[len(head) : len(head) + 1] == b"/"


def _split(content: bytes | mmap.mmap, page_size: int, names: AbstractSet[bytes]) -> set[bytes]:
    """Return those of ``names`` that may be split by the end of a page.

    What does not fit into a row's page goes on at the beginning of an overflow page.
    """
    starts: dict[bytes, set[bytes]] = {}
    for name in names:
        for number in range(1, len(name)):
            starts.setdefault(name[number:], set()).add(name)
    longest = max(map(len, starts), default=0)
    found: set[bytes] = set()
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


def leading(
    links: Iterable[tuple[RelPath, bytes]], paths: AbstractSet[RelPath]
) -> AbstractSet[RelPath]:
    """Return the paths of those of ``links`` that lead to ``paths``, or above or beneath them.

    At once, or through each other; none of ``paths`` themselves.
    """
    return _leading(links, paths) - paths


def _leading(
    links: Iterable[tuple[RelPath, bytes]], paths: AbstractSet[RelPath]
) -> AbstractSet[RelPath]:
    """Return as ``leading`` does, and which of ``paths`` lead to others of them."""
    found: set[RelPath] = set()
    to = {path: _led_to(path, target) for path, target in links}
    above = {top for path in paths for top in _tops(path)}
    while True:
        reached = paths | found
        new = {
            path
            for path, place in to.items()
            if place and path not in found and (place in above or lies_in(place, reached))
        }
        if not new:
            return found
        found |= new
        above |= {top for path in new for top in _tops(path)}


def runs_leading(
    links: Sequence[tuple[RelPath, bytes]], tops: AbstractSet[RelPath]
) -> dict[RelPath, AbstractSet[RelPath]]:
    """Return, of each of ``tops``, the runs with ``links`` that lead there, above or beneath it.

    Of many the same for each: to tell them apart would take longer than what waits for it.
    """
    near = _leading(links, tops) if tops else frozenset()
    if len(near) * len(tops) > _TOLD_APART:
        return dict.fromkeys(tops, frozenset(map(run_of, near)))
    few = [(path, target) for path, target in links if path in near]
    return {top: {run_of(path) for path in _leading(few, {top})} for top in tops} if few else {}


def _led_to(link: RelPath, target: bytes) -> RelPath:
    """Return the path that a link's target is, by its names alone; empty where it is none here."""
    if target.startswith(b"/"):  # whatever lies before its runs: they may have moved
        _, runs, rest = target.rpartition(b"/" + RUNS + b"/")
        return RUNS + b"/" + os.path.normpath(rest) if runs else b""
    place = os.path.normpath(join(parent_of(link), target))
    return b"" if place.startswith(b"..") else place


def _tops(path: RelPath) -> Iterator[RelPath]:
    while path:
        yield path
        path = parent_of(path)
