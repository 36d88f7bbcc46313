"""Files that describe themselves: every block names its path, generation, offset and file length.

So whoever reads a copy can tell, without the source, whether it is whole, cut short, made of two
generations, torn inside a block, or zero where data belong.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from hashlib import blake2s
from pathlib import Path

from blake3 import blake3

BLOCK = 4096
MEBIBYTE = 1 << 20
_FULL = b"workload"
_SPARSE = b"workhole"
_HEAD = struct.Struct("<8s16sQQQ")
_COMPRESSIBLE = bytes(BLOCK - _HEAD.size)
_judged: dict[bytes, Content] = {}


class Verdict(StrEnum):
    """What a copy of a file is."""

    WHOLE = "whole"
    PREFIX = "prefix"
    MIXED = "mixed"
    TORN = "torn"
    ZERO = "zero"
    FOREIGN = "foreign"


@dataclass(frozen=True, slots=True)
class Content:
    """What was found in a file.

    Attributes:
        verdict: what it is.
        generations: one number per block, -1 for a hole.
        where: what is wrong.
        key: of the path that its blocks name; empty where none does.
    """

    verdict: Verdict
    generations: tuple[int, ...] = ()
    where: str = ""
    key: bytes = b""


class Broken(AssertionError):
    """A file is not of one generation."""


def key_of(name: str) -> bytes:
    """Return what stands for the path ``name`` in each of its blocks."""
    return blake2s(os.fsencode(name), digest_size=16).digest()


def block(key: bytes, generation: int, offset: int, total: int, *, sparse: bool = False) -> bytes:
    """Return the block at ``offset``; a ``total`` of 0 is for files that grow without an end."""
    head = _HEAD.pack(_SPARSE if sparse else _FULL, key, generation, offset, total)
    if offset // BLOCK % 10 == 9:
        return head + _COMPRESSIBLE
    return head + blake3(head).digest(length=BLOCK - _HEAD.size)


def pieces(name: str, generation: int, total: int, size: int = MEBIBYTE) -> Iterator[bytes]:
    """Yield the content of a file of ``total`` bytes in pieces of ``size``, whole blocks each."""
    key = key_of(name)
    for start in range(0, total, size):
        end = min(start + size, total)
        data = b"".join(block(key, generation, o, total) for o in range(start, end, BLOCK))
        yield data[: end - start]


def write_sparse(path: Path, name: str, generation: int, total: int) -> None:
    """Write holes with one block in every mebibyte."""
    key = key_of(name)
    with path.open("wb") as file:
        for offset in range(0, total, MEBIBYTE):
            file.seek(offset)
            file.write(block(key, generation, offset, total, sparse=True)[: total - offset])
        file.truncate(total)


def content_of(path: Path) -> Content:
    """Read a file and judge it; equal bytes are judged once."""
    digest = blake3().update_mmap(path).digest()
    if digest not in _judged:
        _judged[digest] = _content_of(path)
    return _judged[digest]


def _content_of(path: Path) -> Content:
    with path.open("rb") as file:
        first = file.read(_HEAD.size)
        if not first:
            return Content(Verdict.PREFIX, where="empty")
        if first[:8] not in (_FULL, _SPARSE) and any(first):
            return Content(Verdict.FOREIGN)
        file.seek(0)
        return _judge(iter(lambda: file.read(BLOCK), b""), os.fstat(file.fileno()).st_size)


def generation_of(path: Path) -> int:
    """Return the one generation of a file, whole or cut short. Raises Broken for anything else."""
    content = content_of(path)
    if content.verdict not in (Verdict.WHOLE, Verdict.PREFIX) or not content.generations:
        raise Broken(f"{path} is {content.verdict} {content.where}")
    return max(content.generations)


def first_generation(path: Path) -> tuple[int, int] | None:
    """Return generation and full length by the first block alone; None where that tells nothing."""
    with path.open("rb") as file:
        head = file.read(_HEAD.size)
    if len(head) < _HEAD.size or head[:8] not in (_FULL, _SPARSE):
        return None
    _, _, generation, _, total = _HEAD.unpack(head)
    return generation, total


def _judge(blocks: Iterator[bytes], size: int) -> Content:
    generations: list[int] = []
    keys: set[tuple[bytes, bytes, int]] = set()
    offset = 0
    holes = 0
    for data in blocks:
        if not any(data):
            generations.append(-1)
            holes += 1
        else:
            found = _read_block(data, offset)
            if isinstance(found, str):
                return Content(Verdict.TORN, tuple(generations), f"at {offset}: {found}")
            generations.append(found[0])
            keys.add(found[1])
        offset += len(data)
    return _verdict(generations, keys, holes, size)


def _read_block(data: bytes, offset: int) -> tuple[int, tuple[bytes, bytes, int]] | str:
    if len(data) < _HEAD.size:
        return -1, (b"", b"", 0)  # a tail too short to tell anything
    magic, key, generation, place, total = _HEAD.unpack(data[: _HEAD.size])
    if magic not in (_FULL, _SPARSE):
        return "not a block"
    if place != offset:
        return f"a block of {place}"
    if data != block(key, generation, offset, total, sparse=magic == _SPARSE)[: len(data)]:
        return f"damaged, generation {generation}"
    return generation, (magic, key, total)


def _verdict(
    generations: list[int], keys: set[tuple[bytes, bytes, int]], holes: int, size: int
) -> Content:
    keys.discard((b"", b"", 0))
    known = set(generations) - {-1}
    found = tuple(generations)
    if len({key for _, key, _ in keys}) > 1:
        return Content(Verdict.TORN, found, "blocks of two files")
    key = max((key for _, key, _ in keys), default=b"")
    if len(known) > 1:
        return Content(Verdict.MIXED, found, f"generations {min(known)} to {max(known)}", key)
    if not keys or (holes and any(magic == _FULL for magic, _, _ in keys)):
        return Content(Verdict.ZERO, found, f"{holes} of {len(generations)} blocks", key)
    total = max(total for _, _, total in keys)
    if total and size > total:
        return Content(Verdict.TORN, found, f"{size} bytes of {total}")
    whole = size == total if total else size % BLOCK == 0
    verdict = Verdict.WHOLE if whole else Verdict.PREFIX
    return Content(verdict, found, f"{size} bytes of {total}", key)
