"""Keeps changed files readable until they are pushed, also when they are deleted meanwhile.

A database's snapshot may name a file that is removed before it is transferred. Its open descriptor
keeps its content, so the checkpoint is whole all the same; the next one removes the file.
"""

from __future__ import annotations

import errno
import os
import resource
import stat
from collections.abc import Iterable, Iterator
from types import TracebackType

from onesync.beneath import open_beneath
from onesync.core.model import Kind, RelPath, Stamp
from onesync.local import stamp_of

_SPARE = 512
"""Descriptors left to everything else; where there are few, three quarters of them."""


class Pins:
    """Open descriptors of a batch's files, as many as the process may have. One thread."""

    def __init__(self, root: bytes) -> None:
        """Pin nothing yet in the working copy at ``root``."""
        self._top = os.open(root, os.O_PATH | os.O_DIRECTORY)
        self._fds: dict[RelPath, int] = {}
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._room = limit - min(_SPARE, limit * 3 // 4)

    def __enter__(self) -> Pins:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for fd in self._fds.values():
            os.close(fd)
        os.close(self._top)

    def __contains__(self, path: RelPath) -> bool:
        return path in self._fds

    def __len__(self) -> int:
        return len(self._fds)

    def __iter__(self) -> Iterator[RelPath]:
        return iter(self._fds)

    def add(self, paths: Iterable[RelPath]) -> set[RelPath]:
        """Pin what stands at ``paths`` now; what stood there before is let go.

        Returns where nothing stands; not all of it where there is no descriptor left.
        """
        gone = set()
        for path in paths:
            try:
                fd = self._open(path)
            except (FileNotFoundError, NotADirectoryError):
                gone.add(path)
                continue
            except OSError:
                # No descriptor is left, or nobody may read it, which the push finds out and says.
                self.release(path)
                continue
            self.release(path)
            if stat.S_ISREG(os.fstat(fd).st_mode):
                self._fds[path] = fd
            else:
                os.close(fd)
        return gone

    def _open(self, path: RelPath) -> int:
        if len(self._fds) >= self._room and path not in self._fds:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), path)
        return open_beneath(self._top, path, os.O_RDONLY | os.O_NONBLOCK)

    def release(self, path: RelPath) -> None:
        """Let one go."""
        fd = self._fds.pop(path, None)
        if fd is not None:
            os.close(fd)

    def stamp(self, path: RelPath) -> Stamp:
        """Return the stamp of a pinned file, whether or not it still has its name."""
        return stamp_of(os.fstat(self._fds[path]), Kind.FILE)

    def sources(self) -> dict[RelPath, bytes]:
        """Return absolute paths under which the pinned files can be read."""
        return {path: b"/proc/%d/fd/%d" % (os.getpid(), fd) for path, fd in self._fds.items()}
