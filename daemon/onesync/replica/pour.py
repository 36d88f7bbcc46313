"""Copies a file's content and digests it on the way.

What the mount does is done in threads of their own where a file is long: it is read ahead, or
written behind, while this machine reads, digests and writes.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext, suppress
from functools import partial
from queue import SimpleQueue
from typing import Generic, Self, TypeVar

from blake3 import blake3

from onesync.core.blocks import BlockHasher, Blocks
from onesync.local import on_this_machine
from onesync.replica import inplace

CHUNK = 1 << 20
_LONG = 4 * CHUNK
"""From which length on threads pay."""
_READS_AHEAD = 2
_FILES_AHEAD = 8
"""So many files of a process are read ahead at once: where there are more the mount has enough to
do, and each chunk that is asked for is memory, and time in which another one does not advance."""
_FLUSHED = 32 * CHUNK
"""After so many bytes a long file is flushed while it is written: its last flush is short."""
_PIECE_OF_ZEROS = bytes(32 << 10)
"""What is left out of a sparse copy; no smaller, or holes would cost more than they save."""
ONE_PIECE = 64 << 10
"""What a pipe holds: a file of no more comes in one piece."""

_read_ahead = threading.BoundedSemaphore(_FILES_AHEAD)

T = TypeVar("T")
_Read = Callable[[int, int, int], bytes]
_Where = Callable[[], AbstractContextManager[None]]


class Pipe:
    """Reads by way of a pipe: read(2) has FUSE ask for the attributes first, splice(2) has not.

    So a file ends where it ended when it was opened, and its end costs no call.
    """

    def __enter__(self) -> Self:
        self._out, self._in = os.pipe2(os.O_CLOEXEC)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._out)
        os.close(self._in)

    def read(self, origin: int, size: int, offset: int) -> bytes:
        """Read up to ``size`` bytes; none is the end."""
        try:
            size = os.splice(origin, self._in, min(size, ONE_PIECE), offset_src=offset)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return os.pread(origin, size, offset)  # a file system that has no such call
        content = b""
        while len(content) < size:
            content += os.read(self._out, size - len(content))
        return content


def past_cache(origin: int) -> _Read:
    """Return what reads ``origin`` past this machine's cache, where its file system has such a way.

    That saves a copy of each byte, and FUSE asks for as much by one call as the mount takes.
    """
    # Else the kernel reads ahead, and so in larger pieces: twice as many bytes a call.
    os.posix_fadvise(origin, 0, 0, os.POSIX_FADV_SEQUENTIAL)
    flags = fcntl.fcntl(origin, fcntl.F_GETFL)
    with suppress(OSError):
        fcntl.fcntl(origin, fcntl.F_SETFL, flags | os.O_DIRECT)

    def read(origin: int, size: int, offset: int) -> bytes:
        try:
            return os.pread(origin, size, offset)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        # A disk reads whole sectors into memory that begins like one.
        fcntl.fcntl(origin, fcntl.F_SETFL, flags)
        return os.pread(origin, size, offset)

    return read


class _Aside(Generic[T]):
    """Makes one call at a time in a thread of its own, which ends with the block.

    Where this machine has no thread to spare the call is made at once, by who begins it.
    """

    def __init__(self) -> None:
        self._asked: SimpleQueue[Callable[[], T] | None] = SimpleQueue()
        self._answered: SimpleQueue[tuple[T | None, BaseException | None]] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._is_busy = False

    def __enter__(self) -> Self:
        thread = threading.Thread(target=self._work, daemon=True)
        with suppress(RuntimeError):
            thread.start()
            self._thread = thread
        return self

    def __exit__(self, *_: object) -> None:
        # What was begun is waited for: nothing is written any more when the caller goes on. An
        # error of the mount counts, also where the caller has one of his own.
        self._asked.put(None)
        if self._thread is not None:
            self._thread.join()
        self.end()

    def begin(self, act: Callable[[], T]) -> None:
        """Let the thread do it; what was begun before has ended."""
        self._is_busy = True
        if self._thread is None:
            self._do(act)
        else:
            self._asked.put(act)

    def end(self) -> T | None:
        """Wait for what was begun, and return its result or raise its error; None of nothing."""
        if not self._is_busy:
            return None
        result, error = self._answered.get()
        self._is_busy = False
        try:
            if error is not None:
                raise error
            return result
        finally:
            del error  # it holds this frame

    def _work(self) -> None:
        while (act := self._asked.get()) is not None:
            self._do(act)

    def _do(self, act: Callable[[], T]) -> None:
        try:
            self._answered.put((act(), None))
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            self._answered.put((None, error))


class Pour:
    """A copy that digests what it copies, and may go on later from where its time was up."""

    def __init__(
        self,
        blocks: BlockHasher | None,
        progress: Callable[[int], None],
        seen: os.stat_result | None = None,
        *,
        outward: bool = True,
        renewed: BlockHasher | None = None,
    ) -> None:
        """Begin at 0, for as long as it takes; ``blocks`` and ``renewed`` are fed too.

        ``seen`` is what the origin looked like before; ``outward`` is to the replica.
        """
        self.seen = seen
        self._outward = outward
        self._reading: _Where = on_this_machine if outward else nullcontext
        self._writing: _Where = nullcontext if outward else on_this_machine
        self.hasher = blake3()
        self.offset = 0
        self.is_late = False
        self._ends_with_hole = False
        self._blocks = blocks
        self._renewed = renewed
        self._progress = progress
        self._deadline = float("inf")

    def begin(self, seconds: float | None) -> None:
        """Allow ``seconds`` (None: for ever) from now on."""
        self._deadline = float("inf") if seconds is None else time.monotonic() + seconds
        self.is_late = False

    def run(
        self,
        origin: int,
        target: int | None,
        end: int | None,
        *,
        sparse: bool = False,
        read: _Read = os.pread,
        length: int = 0,
    ) -> None:
        """Copy up to ``end`` (None: all) to the same place in ``target`` (None: digest alone).

        Where ``sparse``, runs of zeros become holes. Of what comes from the replica, ``length``
        bytes are expected: so many are read ahead.
        """
        self._ends_with_hole = False
        left = (length if end is None else end) - self.offset
        if target is None or left < _LONG:
            self._run(self._chunks(origin, end, read), target, sparse)
        elif self._outward:
            with _Aside[int]() as behind:
                self._run(self._chunks(origin, end, read), target, sparse, behind)
        else:
            with (
                closing(self._chunks_ahead(origin, length, read)) as ahead,
                _Aside[None]() as flush,
            ):
                self._run(ahead, target, sparse, flushing=flush)
        if self._ends_with_hole and target is not None:
            os.ftruncate(target, self.offset)

    def _run(
        self,
        chunks: Iterator[bytes],
        target: int | None,
        sparse: bool,
        behind: _Aside[int] | None = None,
        flushing: _Aside[None] | None = None,
    ) -> None:
        """Digest and write one chunk after the other.

        ``behind`` writes while the next one is read, ``flushing`` flushes what was written.
        """
        flushed = self.offset
        for chunk in chunks:
            self._digest(chunk)
            write = partial(self._write, target, chunk, self.offset, sparse)
            self.offset += len(chunk)
            if behind is None:
                self._progress(write())
            else:
                self._tell(behind.end())
                behind.begin(write)
            if flushing is not None and target is not None and self.offset >= flushed + _FLUSHED:
                flushing.end()
                flushing.begin(partial(_flush, target))
                flushed = self.offset
            self.is_late = time.monotonic() >= self._deadline
            if self.is_late:
                break
        if behind is not None:
            self._tell(behind.end())
        if flushing is not None:
            flushing.end()

    def _tell(self, written: int | None) -> None:
        if written is not None:
            self._progress(written)

    def _chunks(self, origin: int, end: int | None, read: _Read) -> Iterator[bytes]:
        """Yield what follows, up to ``end``."""
        while end is None or self.offset < end:
            wanted = CHUNK if end is None else min(CHUNK, end - self.offset)
            with self._reading():
                chunk = read(origin, wanted, self.offset)
            if not chunk:
                return
            yield chunk

    def _chunks_ahead(self, origin: int, length: int, read: _Read) -> Generator[bytes, None, None]:
        """Yield all that follows; what is before ``length`` is read ahead."""
        if _read_ahead.acquire(blocking=False):
            try:
                yield from self._while_whole(origin, length, read)
            finally:
                _read_ahead.release()
        # Shorter than it was, or longer: it is read to its end from where it is now.
        yield from self._chunks(origin, None, read)

    def _while_whole(self, origin: int, length: int, read: _Read) -> Generator[bytes, None, None]:
        """Read ahead until ``length``, or until less comes than was asked for."""
        with ExitStack() as stack:
            idle = deque(stack.enter_context(_Aside[bytes]()) for _ in range(_READS_AHEAD))
            begun: deque[tuple[_Aside[bytes], int]] = deque()
            offset, is_short = self.offset, False
            while not is_short and (begun or offset < length):
                while idle and offset < length:
                    aside, wanted = idle.popleft(), min(CHUNK, length - offset)
                    aside.begin(partial(read, origin, wanted, offset))
                    begun.append((aside, wanted))
                    offset += wanted
                aside, wanted = begun.popleft()
                chunk = aside.end() or b""
                idle.append(aside)
                is_short = len(chunk) < wanted
                if chunk:
                    yield chunk

    def _digest(self, chunk: bytes) -> None:
        self.hasher.update(chunk)
        for blocks in (self._blocks, self._renewed):
            if blocks is not None:
                blocks.update(chunk)

    def _write(self, target: int | None, chunk: bytes, offset: int, sparse: bool) -> int:
        """Write one chunk; returns how many bytes travelled, holes included."""
        if target is None:
            return 0
        with self._writing():
            self._ends_with_hole = sparse and _write_sparse(target, chunk, offset)
            if not sparse:
                inplace.write_at(target, chunk, offset)
        return len(chunk)

    def blocks(self) -> Blocks | None:
        """Return the digests of the blocks so far; None of a small file."""
        return None if self._blocks is None else self._blocks.blocks()

    def renewed(self) -> Blocks | None:
        """Return the digests of the other blocks; None where there are none."""
        return None if self._renewed is None else self._renewed.blocks()


@on_this_machine()
def _flush(target: int) -> None:
    os.fdatasync(target)


def _write_sparse(target: int, chunk: bytes, offset: int) -> bool:
    """Write one chunk without its runs of zeros; returns whether it ends with a hole."""
    starts = range(0, len(chunk), len(_PIECE_OF_ZEROS))
    # A comparison ends with the first byte that differs; a search would read and prepare more.
    if not any(chunk.startswith(_PIECE_OF_ZEROS, start) for start in starts):
        inplace.write_at(target, chunk, offset)
        return False
    hole = False
    for start in starts:
        piece = chunk[start : start + len(_PIECE_OF_ZEROS)]
        hole = piece == _PIECE_OF_ZEROS[: len(piece)]
        if not hole:
            inplace.write_at(target, piece, offset + start)
    return hole
