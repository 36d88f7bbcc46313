"""Changes inside a large file of the replica: append to it, patch its blocks, undo both.

A patch is prepared by an *undo* file with the old contents of the blocks that it will change,
flushed before the first of them is. So the death of a batch at any point leaves the old version
restorable, by whichever node settles the batch. Works on descriptors; never looks names up.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from blake3 import blake3

from onesync.core.blocks import BlockHasher, Blocks, runs
from onesync.local import on_this_machine

_CHUNK = 1 << 20
_HEAD_BYTES = 20
"""The undo file begins with the length of its JSON head: decimal, padded, with a line break."""
_LONGEST_HEAD = 64 << 20
_LARGEST_BLOCK = 2 << 20

Progress = Callable[[int], None]


def hash_file(
    fd: int, end: int | None, blocks: BlockHasher | None, progress: Progress
) -> tuple[str, int]:
    """Digest the first ``end`` bytes (None: all), feeding ``blocks`` too, and count them."""
    hasher = blake3()
    offset = 0
    while end is None or offset < end:
        chunk = os.pread(fd, _CHUNK if end is None else min(_CHUNK, end - offset), offset)
        if not chunk:
            break
        hasher.update(chunk)
        if blocks is not None:
            blocks.update(chunk)
        offset += len(chunk)
        progress(0)
    return hasher.hexdigest(), offset


def changed_blocks(
    fd: int, length: int, old: Blocks, new: Blocks, kept: Mapping[int, bytes]
) -> list[int]:
    """Return the blocks of the first ``length`` bytes in which the file differs from ``old``.

    A last block that only grew has not changed. Those that are ``kept`` are not read.
    """
    count = -(-length // old.size)
    rest = length % old.size
    changed = [n for n in range(count) if old.digest(n) != new.digest(n)]
    if changed and changed[-1] == count - 1 and rest:
        last = count - 1
        begin = kept[last][:rest] if last in kept else os.pread(fd, rest, last * old.size)
        if old.holds(last, begin):
            changed.pop()
    return changed


def write_undo(
    target: int, undo: int, length: int, old: Blocks, numbers: Sequence[int], progress: Progress
) -> bool:
    """Write the blocks ``numbers`` of ``target`` to ``undo``, flushed.

    Returns False, with ``undo`` worthless, unless ``target`` has ``length`` bytes and these blocks
    are as ``old`` says.
    """
    if os.fstat(target).st_size != length:
        return False
    hasher = blake3()
    offset = _HEAD_BYTES
    os.pwrite(undo, b"\n" * _HEAD_BYTES, 0)
    for run in runs(numbers, _CHUNK // old.size):
        content = _read_run(target, run, old.size, length)
        if not _is_as(old, run, content):
            return False
        hasher.update(content)
        offset += write_at(undo, content, offset)
        progress(len(content))
    head = {
        "onesync": "undo",
        "format": 1,
        "length": length,
        "block_size": old.size,
        "blocks": list(numbers),
        "digest": hasher.hexdigest(),
    }
    text = json.dumps(head).encode()
    write_at(undo, text, offset)
    os.fsync(undo)
    # The first bytes come last: without them there is no undo file, and no patch was begun.
    os.pwrite(undo, b"%019d\n" % offset, 0)
    os.fsync(undo)
    return True


@dataclass(frozen=True, slots=True)
class Undo:
    """What an undo file tells: the old length, and (start, length) of the old blocks in turn."""

    length: int
    blocks: tuple[tuple[int, int], ...]


def read_undo(undo: int, length: int, progress: Progress) -> Undo | None:
    """Read an undo file; None unless it is whole and of a file that had ``length`` bytes.

    It lies where others may write: no number in it is believed that a patch could not have written.
    """
    head = _read_head(undo)
    if head is None or head.get("length") != length:
        return None
    blocks = _old_blocks(head.get("blocks"), head.get("block_size"), length)
    if blocks is None:
        return None
    hasher = blake3()
    for content in _contents(undo, blocks):
        hasher.update(content)
        progress(0)
    return Undo(length, blocks) if hasher.hexdigest() == head.get("digest") else None


def write_back(undo: int, target: int, old: Undo, progress: Progress) -> None:
    """Write the old blocks into ``target``, give it its old length, and flush."""
    for (start, _), content in zip(old.blocks, _contents(undo, old.blocks), strict=True):
        write_at(target, content, start)
        progress(0)
    os.ftruncate(target, old.length)
    os.fsync(target)


def _read_head(undo: int) -> dict[str, Any] | None:
    size = os.fstat(undo).st_size
    start = os.pread(undo, _HEAD_BYTES, 0).strip()
    if not start.isdigit() or not _HEAD_BYTES <= int(start) <= size:
        return None
    if size - int(start) > _LONGEST_HEAD:
        return None
    try:
        head = json.loads(os.pread(undo, size - int(start), int(start)))
    except (ValueError, RecursionError):
        return None
    if not isinstance(head, dict) or (head.get("onesync"), head.get("format")) != ("undo", 1):
        return None
    return head


def _old_blocks(numbers: object, size: object, length: int) -> tuple[tuple[int, int], ...] | None:
    """Return (start, length) of the blocks of a file; None unless there are such and they rise."""
    if type(size) is not int or not 0 < size <= _LARGEST_BLOCK or not isinstance(numbers, list):
        return None
    blocks = []
    least = 0
    for number in numbers:
        if type(number) is not int or not least <= number * size < length:
            return None
        blocks.append((number * size, min(size, length - number * size)))
        least = (number + 1) * size
    return tuple(blocks)


def _contents(undo: int, blocks: Iterable[tuple[int, int]]) -> Iterator[bytes]:
    offset = _HEAD_BYTES
    for _, size in blocks:
        yield os.pread(undo, size, offset)
        offset += size


def write_blocks(
    source: int,
    target: int,
    new: Blocks,
    numbers: Iterable[int],
    end: int,
    progress: Progress,
    kept: Mapping[int, bytes],
) -> bool:
    """Copy the blocks ``numbers`` of a file of ``end`` bytes in place, and flush.

    Those that are ``kept`` are not read from the source, which has other ones by now. Returns False
    where it is not what ``new`` says any more; the target is then a mix.
    """
    for run in runs(numbers, _CHUNK // new.size):
        with on_this_machine():
            content = _read_or_kept(source, run, new.size, end, kept)
        if not _is_as(new, run, content):
            return False
        write_at(target, content, run.start * new.size)
        progress(len(content))
    os.fsync(target)
    return True


def write_at(fd: int, content: bytes, offset: int) -> int:
    """Write all of ``content`` at ``offset``; returns its length."""
    view = memoryview(content)
    while view:
        written = os.pwrite(fd, view, offset)
        view = view[written:]
        offset += written
    return len(content)


def _read_run(fd: int, run: range, size: int, end: int) -> bytes:
    start = run.start * size
    return os.pread(fd, max(0, min(len(run) * size, end - start)), start)


def _read_or_kept(fd: int, run: range, size: int, end: int, kept: Mapping[int, bytes]) -> bytes:
    if kept.keys().isdisjoint(run):
        return _read_run(fd, run, size, end)
    single = (range(number, number + 1) for number in run)
    return b"".join(kept.get(one.start) or _read_run(fd, one, size, end) for one in single)


def _is_as(blocks: Blocks, run: range, content: bytes) -> bool:
    """Whether ``content`` is what ``blocks`` tells of a run of them."""
    view = memoryview(content)
    return all(
        blocks.holds(number, view[place * blocks.size : (place + 1) * blocks.size])
        for place, number in enumerate(run)
    )
