"""Open files of the stand-in: what they hold back, lose, and tell late."""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from collections.abc import Iterator

from tests.standin.profiles import Profile
from tests.standin.space import Space
from tests.standin.weather import Deferred, Weather

Piece = tuple[int, bytes]  # offset, data


class Gaps:
    """The ranges of files that were written with success and never reached the storage."""

    def __init__(self) -> None:
        self._of: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)

    def lose(self, ino: int, offset: int, size: int) -> None:
        """Note a lost range."""
        self.fill(ino, offset, size)
        self._of[ino].append((offset, offset + size))

    def fill(self, ino: int, offset: int, size: int) -> None:
        """Note that a range reached the storage after all."""
        if ino in self._of:
            self._of[ino] = list(_without(self._of[ino], offset, offset + size))

    def forget(self, ino: int, length: int) -> None:
        """Note that a file ends at ``length``; a new file ends at 0."""
        if ino in self._of:
            kept = ((start, min(end, length)) for start, end in self._of[ino] if start < length)
            self._of[ino] = list(kept)

    def size(self, ino: int) -> int:
        """Return how many bytes a file lost."""
        return sum(end - start for start, end in self._of.get(ino, ()))

    def end(self, ino: int) -> int:
        """Return where the last lost range ends."""
        return max((end for _, end in self._of.get(ino, ())), default=0)


def _without(ranges: list[tuple[int, int]], start: int, end: int) -> Iterator[tuple[int, int]]:
    for one, other in ranges:
        if one < min(other, start):
            yield one, min(other, start)
        if max(one, end) < other:
            yield max(one, end), other


class Handle:
    """One open file; ``gone`` since the connection it was opened through was lost."""

    def __init__(self, fd: int, path: str, flags: int) -> None:
        self.fd = fd
        self.path = path
        self.flags = flags
        self.ino = os.fstat(fd).st_ino
        self.pending: list[Piece] = []
        self.wrote = False
        self.gone = False
        self.lock = threading.RLock()
        self._late: Deferred | None = None

    def held(self) -> int:
        """Return how many bytes are not stored yet."""
        return sum(len(data) for _, data in self.pending)

    def end(self) -> int:
        """Return where the last piece that is not stored ends."""
        return max((offset + len(data) for offset, data in self.pending), default=0)

    def fails_later(self, error: OSError) -> None:
        """Keep an error for a later call to tell."""
        late = error if isinstance(error, Deferred) else Deferred(error.errno or 0)
        self._late = self._late or late

    def tell(self, call: str) -> None:
        """Raise the error that was kept, if this call tells it; then it is forgotten."""
        late = self._late
        if late is not None and (call == "close" or late.told_at in ("", call)):
            self._late = None
            raise OSError(late.errno, late.strerror)

    def forget(self) -> None:
        """Lose the buffer and the error, silently."""
        self.pending.clear()
        self._late = None
        self.gone = True


class Handles:
    """All open files, keyed by their descriptor in the backing folder."""

    def __init__(self, profile: Profile, weather: Weather, space: Space) -> None:
        self.buffer = profile.buffer
        self.gaps = Gaps()
        self._profile = profile
        self._weather = weather
        self._space = space
        self._open: dict[int, Handle] = {}

    def add(self, fd: int, path: str, flags: int) -> int:
        """Take a descriptor over."""
        self._open[fd] = Handle(fd, path, flags)
        return fd

    def __getitem__(self, fd: int) -> Handle:
        return self._open[fd]

    def of(self, ino: int) -> list[Handle]:
        """Return the open handles of a file."""
        return [handle for handle in list(self._open.values()) if handle.ino == ino]

    def write(self, handle: Handle, data: bytes, offset: int) -> None:
        """Hold data back, or store them where enough is held back."""
        with handle.lock:
            self._open_anew(handle)
            handle.wrote = True
            if not self.buffer:
                self._store(handle, [(offset, data)])
                return
            if handle.held() + len(data) > self.buffer:
                handle.tell("write")
                self._store_behind(handle)
            handle.pending.append((offset, data))

    def settle(self, handle: Handle, call: str) -> None:
        """Store what is held back, and tell what failed since the last time; once."""
        with handle.lock:
            if handle.pending:
                self._store_behind(handle)
            handle.tell(call)

    def close(self, fd: int) -> None:
        """Close a handle; what it still holds back is lost."""
        handle = self._open.pop(fd)
        self._lose(handle)
        if handle.wrote and self._profile.write_sets_time_late:
            os.utime(fd)
        os.close(fd)

    def lose_all(self) -> None:
        """Drop every handle's buffer, as a client does that lost its provider."""
        for handle in list(self._open.values()):
            with handle.lock:
                self._lose(handle)
                handle.forget()

    def _lose(self, handle: Handle) -> None:
        for offset, data in handle.pending:
            self.gaps.lose(handle.ino, offset, len(data))

    def _open_anew(self, handle: Handle) -> None:
        if handle.gone and self._profile.truncates_again and handle.flags & os.O_TRUNC:
            os.ftruncate(handle.fd, 0)
        handle.gone = False

    def _store_behind(self, handle: Handle) -> None:
        pieces, handle.pending = handle.pending, []
        try:
            if self._weather.reach("store", handle.path):
                self._store(handle, pieces)
                return
        except OSError as error:
            handle.fails_later(error)
        for offset, data in pieces:
            self.gaps.lose(handle.ino, offset, len(data))

    def _store(self, handle: Handle, pieces: list[Piece]) -> None:
        for offset, data in pieces:
            self._admit(handle, offset + len(data))
            os.pwrite(handle.fd, data, offset)
            self.gaps.fill(handle.ino, offset, len(data))

    def _admit(self, handle: Handle, end: int) -> None:
        if self._space.admits(end - os.fstat(handle.fd).st_size):
            return
        late = Deferred(self._space.number, self._space.told_at)
        if late.told_at == "write":
            raise OSError(late.errno, late.strerror)
        raise late
