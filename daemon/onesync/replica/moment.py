"""Finds what a file was at one moment, though somebody writes it all the time.

What changed while the file was read is read again, twice, with all that it grew by: where both
agree, and nothing else changed from the first reading to one more after that, all of it stood there
between the two. So a stack whose head counts its images, and is rewritten with each, has a state
that it really had. What grew by more than can be kept ends where it ended when it was read first:
that is the beginning of such a state, and how long that was is told.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, field, replace

from blake3 import blake3

from onesync.core.blocks import DIGEST_BYTES, Blocks

_CHUNK = 1 << 20
_KEPT_AT_MOST = 8 << 20
"""No more bytes that change are kept in memory. Of more hardly ever two readings agree."""
_READINGS = 4
_TRIES = 10


@dataclass(frozen=True, slots=True)
class Moment:
    """What a file, or its beginning, was at one moment.

    Attributes:
        digest: blake3 of it, hex.
        size: its length.
        blocks: digests of its blocks; None of a small file.
        renewed: of the blocks that one like it gets today, where the known ones are others.
        kept: the blocks that are not what was read first, by their numbers.
        whole: how long the file was when it had those; less than ``size`` is of no account.
    """

    digest: str
    size: int
    blocks: Blocks | None
    renewed: Blocks | None = None
    kept: Mapping[int, bytes] = field(default_factory=dict)
    whole: int = 0


@dataclass(frozen=True, slots=True)
class _Once:
    """Where the file ends in a moment, blocks that stood there at once, and its length then."""

    end: int
    kept: Mapping[int, bytes]
    whole: int


def moment_of(fd: int, read: Moment, progress: Callable[[int], None]) -> Moment:
    """Return a moment of the open file ``fd`` of which ``read`` is what was read so far.

    Where there is none to be found, the result is what comes before the first change: that much is
    certain.
    """
    assert read.blocks is not None
    # Its head may tell of what came since somebody looked how long it is.
    once = _at_once(fd, set(), read.blocks.size, read.size)
    beginning: Moment | None = None
    for _ in range(_READINGS):
        changed, moment = _look(fd, read, once, progress)
        if not changed:
            return moment
        beginning = beginning or moment
        once = _at_once(fd, once.kept.keys() | changed, read.blocks.size, read.size)
        if not once.kept:
            break
    assert beginning is not None
    return beginning


def _look(
    fd: int, read: Moment, once: _Once, progress: Callable[[int], None]
) -> tuple[set[int], Moment]:
    """Return the blocks before the end that changed since they were read, but those kept.

    And what the file was, if there are none; what comes before the first of them, if there are.
    """
    known, kept = read.blocks, once.kept
    assert known is not None
    hasher, blocks = blake3(), known.hasher()
    renewed = None if read.renewed is None else read.renewed.hasher()
    changed: set[int] = set()
    beginning: Moment | None = None
    for number, content in _blocks(fd, once.end, known.size, kept, progress):
        if number not in kept and not known.holds(number, content):
            changed.add(number)
            sure = replace(known, digests=known.digests[: number * DIGEST_BYTES])
            beginning = beginning or Moment(hasher.hexdigest(), number * known.size, sure)
        if not changed:
            for one in (hasher, blocks, renewed):
                if one is not None:
                    one.update(content)
    if beginning is not None:
        return changed, beginning
    others = None if renewed is None else renewed.blocks()
    # Nothing that is not from the beginning on: of what only grew, that was all there was once.
    whole = once.whole if kept else 0
    return changed, Moment(hasher.hexdigest(), once.end, blocks.blocks(), others, kept, whole)


def _blocks(
    fd: int, end: int, size: int, kept: Mapping[int, bytes], progress: Callable[[int], None]
) -> Iterable[tuple[int, bytes]]:
    """Yield the blocks of the first ``end`` bytes as they are now, or are ``kept``."""
    step = max(size, _CHUNK // size * size)
    for start in range(0, end, step):
        stop = min(start + step, end)
        content = os.pread(fd, stop - start, start)
        for at in range(start, stop, size):
            number, block = at // size, content[at - start : min(at + size, stop) - start]
            yield number, kept.get(number, block)
        progress(0)


def _at_once(fd: int, numbers: Set[int], size: int, read: int) -> _Once:
    """Return where the file ended at one moment, and its blocks ``numbers`` and those beyond.

    It ends where it was ``read`` to if it grew by too much since, or grows too fast. There are no
    blocks where they are too many, or change too fast.
    """
    for is_grown in (True, False):
        found = _twice_the_same(fd, numbers, size, read, is_grown=is_grown)
        if found is not None:
            return found
    return _Once(read, {}, 0)


def _twice_the_same(
    fd: int, numbers: Set[int], size: int, read: int, *, is_grown: bool
) -> _Once | None:
    once = _Once(read, {}, 0)
    for _ in range(_TRIES):
        length = os.fstat(fd).st_size
        end = max(read, length) if is_grown else read
        beyond = range(read // size, -(-end // size)) if end > read else ()
        wanted = sorted({*numbers, *beyond})
        if len(wanted) * size > _KEPT_AT_MOST:
            return None
        again = _Once(end, {n: _block(fd, n, size, end) for n in wanted}, length)
        if (again.end, again.kept) == (once.end, once.kept):
            is_whole = all(len(b) == min(size, end - n * size) for n, b in again.kept.items())
            return again if is_whole else None  # it was cut
        once = again
    return None


def _block(fd: int, number: int, size: int, end: int) -> bytes:
    return os.pread(fd, min(size, end - number * size), number * size)
