"""Digests of a file's blocks: they tell which parts of a large file changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from blake3 import blake3

DIGEST_BYTES = 16
PATCH_FROM = 1 << 20
"""Smaller files are copied whole: a patch costs as many calls as their bytes do."""

_SIZES = ((16 << 30, 1 << 20), (1 << 30, 256 << 10), (64 << 20, 64 << 10), (0, 16 << 10))
"""From which length on a file's blocks have which size: a live database changes page by page, and
the digests of a huge file must not be many."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """The digests of a file's blocks of ``size`` bytes (the last may be shorter), end to end."""

    size: int
    digests: bytes

    def digest(self, number: int) -> bytes:
        """Return the digest of one block; empty beyond the last."""
        return self.digests[number * DIGEST_BYTES : (number + 1) * DIGEST_BYTES]


def block_size(length: int) -> int:
    """Return the block size for a file of ``length`` bytes: a divisor of every larger one."""
    return next(size for at_least, size in _SIZES if length >= at_least)


def runs(numbers: Iterable[int], most: int) -> Iterator[range]:
    """Yield the rising ``numbers`` as runs of up to ``most`` that follow each other."""
    run = range(0)
    for number in numbers:
        if run and number == run.stop and len(run) < most:
            run = range(run.start, number + 1)
            continue
        if run:
            yield run
        run = range(number, number + 1)
    if run:
        yield run


def block_digest(content: bytes | memoryview) -> bytes:
    """Return the digest of one block."""
    return blake3(content).digest(length=DIGEST_BYTES)


class BlockHasher:
    """Takes a file's bytes in any pieces."""

    def __init__(self, size: int) -> None:
        """Begin with blocks of ``size`` bytes."""
        self._size = size
        self._digests = bytearray()
        self._current = blake3()
        self._filled = 0

    def update(self, content: bytes) -> None:
        """Take the next bytes."""
        view = memoryview(content)
        while view:
            part = view[: self._size - self._filled]
            self._current.update(part)
            self._filled += len(part)
            if self._filled == self._size:
                self._digests += self._current.digest(length=DIGEST_BYTES)
                self._current, self._filled = blake3(), 0
            view = view[len(part) :]

    def blocks(self) -> Blocks:
        """Return the blocks of what was taken so far; more may follow."""
        last = self._current.digest(length=DIGEST_BYTES) if self._filled else b""
        return Blocks(self._size, bytes(self._digests) + last)
