"""Digests of a file's blocks: they tell which parts of a large file changed.

Those of one node are compared with each other alone, and are as many bytes as the file once more:
XXH3 takes a quarter of BLAKE3's time. Whoever can make blocks with equal digests deceives himself,
until the digest of the whole file, which is BLAKE3, tells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from blake3 import blake3
from xxhash import xxh3_128

DIGEST_BYTES = 16
ALGORITHM = "xxh3-128"
OLD_ALGORITHM = "blake3"
"""What digested the blocks that earlier versions remembered; those are compared with it further."""
PATCH_FROM = 1 << 20
"""Smaller files are copied whole: a patch costs as many calls as their bytes do."""

_SIZES = ((16 << 30, 1 << 20), (1 << 30, 256 << 10), (64 << 20, 64 << 10), (0, 16 << 10))
"""From which length on a file's blocks have which size: a live database changes page by page, and
the digests of a huge file must not be many."""


class _Digesting(Protocol):
    def update(self, content: memoryview, /) -> object: ...

    def digest(self) -> bytes: ...


_DIGESTING: dict[str, Callable[[bytes | memoryview], _Digesting]] = {
    ALGORITHM: xxh3_128,
    OLD_ALGORITHM: blake3,
}


@dataclass(frozen=True, slots=True)
class Blocks:
    """The digests of a file's blocks of ``size`` bytes (the last may be shorter), end to end."""

    size: int
    digests: bytes
    algorithm: str = ALGORITHM

    def digest(self, number: int) -> bytes:
        """Return the digest of one block; empty beyond the last."""
        return self.digests[number * DIGEST_BYTES : (number + 1) * DIGEST_BYTES]

    def holds(self, number: int, content: bytes | memoryview) -> bool:
        """Return whether one block is ``content``."""
        found = _DIGESTING[self.algorithm](content).digest()[:DIGEST_BYTES]
        return found == self.digest(number)

    def hasher(self) -> BlockHasher:
        """Return what makes blocks that can be compared with these."""
        return BlockHasher(self.size, self.algorithm)


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


class BlockHasher:
    """Takes a file's bytes in any pieces."""

    def __init__(self, size: int, algorithm: str = ALGORITHM) -> None:
        """Begin with blocks of ``size`` bytes."""
        self._size = size
        self._algorithm = algorithm
        self._digests = bytearray()
        self._current = _DIGESTING[algorithm](b"")
        self._filled = 0

    def update(self, content: bytes) -> None:
        """Take the next bytes."""
        view = memoryview(content)
        while view:
            part = view[: self._size - self._filled]
            self._current.update(part)
            self._filled += len(part)
            if self._filled == self._size:
                self._digests += self._current.digest()[:DIGEST_BYTES]
                self._current, self._filled = _DIGESTING[self._algorithm](b""), 0
            view = view[len(part) :]

    def blocks(self) -> Blocks:
        """Return the blocks of what was taken so far; more may follow."""
        last = self._current.digest()[:DIGEST_BYTES] if self._filled else b""
        return Blocks(self._size, bytes(self._digests) + last, self._algorithm)
