"""Changes inside a large file of the replica: append to it, patch its blocks, undo both.

A patch is prepared by an *undo* file with the old contents of the blocks that it will change,
flushed before the first of them is. So the death of a batch at any point leaves the old version
restorable, by whichever node settles the batch. Works on descriptors; never looks names up.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence

from blake3 import blake3

from onesync.core.blocks import BlockHasher, Blocks, block_digest
from onesync.local import on_this_machine

_CHUNK = 1 << 20
_HEAD_BYTES = 20
"""The undo file begins with the length of its JSON head: decimal, padded, with a line break."""

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


def changed_blocks(fd: int, length: int, old: Blocks, new: Blocks) -> list[int]:
    """Return the blocks of the first ``length`` bytes in which the file differs from ``old``.

    A last block that only grew has not changed.
    """
    count = -(-length // old.size)
    rest = length % old.size
    changed = [n for n in range(count) if old.digest(n) != new.digest(n)]
    if changed and changed[-1] == count - 1 and rest:
        begins_alike = block_digest(os.pread(fd, rest, (count - 1) * old.size)) == old.digest(
            count - 1
        )
        if begins_alike:
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
    for number in numbers:
        content = _block(target, number, old.size, length)
        if block_digest(content) != old.digest(number):
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


def read_undo(undo: int, progress: Progress) -> tuple[int, list[tuple[int, bytes]]] | None:
    """Return the old length and (offset, content) of the old blocks; None unless it is whole."""
    size = os.fstat(undo).st_size
    start = os.pread(undo, _HEAD_BYTES, 0)
    if not start.strip().isdigit() or not _HEAD_BYTES <= int(start) <= size:
        return None
    try:
        head = json.loads(os.pread(undo, size - int(start), int(start)))
    except ValueError:
        return None
    if not isinstance(head, dict) or (head.get("onesync"), head.get("format")) != ("undo", 1):
        return None
    length, block = int(head["length"]), int(head["block_size"])
    hasher = blake3()
    offset = _HEAD_BYTES
    blocks = []
    for number in head["blocks"]:
        wanted = min(block, length - number * block)
        content = os.pread(undo, wanted, offset)
        hasher.update(content)
        offset += wanted
        blocks.append((number * block, content))
        progress(0)
    return (length, blocks) if hasher.hexdigest() == head["digest"] else None


def write_blocks(
    source: int, target: int, new: Blocks, numbers: Iterable[int], end: int, progress: Progress
) -> bool:
    """Copy the blocks ``numbers`` of a file of ``end`` bytes in place, and flush.

    Returns False where the source is not what ``new`` says any more; the target is then a mix.
    """
    for number in numbers:
        with on_this_machine():
            content = _block(source, number, new.size, end)
        if block_digest(content) != new.digest(number):
            return False
        write_at(target, content, number * new.size)
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


def _block(fd: int, number: int, size: int, end: int) -> bytes:
    start = number * size
    return os.pread(fd, max(0, min(size, end - start)), start)
