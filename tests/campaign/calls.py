"""The system calls on the mount, numbered, and what goes wrong at one of them.

Stands in the place of the module ``os`` in those modules of ``replica`` that make calls, and of the
functions of ``beneath`` and ``statx``. Calls on local descriptors go through untouched.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from inspect import isroutine
from typing import Any
from unittest import mock

from onesync.beneath import open_beneath, rename_new
from onesync.replica import folder, inplace, pour
from onesync.replica.statx import Looked, look_up

_NO_CALLS = ("fsdecode", "fsencode", "pipe2", "posix_fadvise", "readlink", "strerror")
"""These ask the mount for nothing: of links, only those in /proc are read."""
_LOCAL = ("fchmod", "fdatasync", "read", "utime")
"""These get descriptors of this machine alone. Any other function must be numbered."""


class Crash(BaseException):
    """The process dies here: nothing that comes after it happens."""


class Hung(BaseException):
    """The call does not come back: the child that made it is abandoned."""


@dataclass(frozen=True)
class Fault:
    """What goes wrong at the call ``number`` (from 1 on).

    ``what`` is an errno's name, ``crash`` or ``hang``. A ``lasting`` one holds until it is lifted;
    an ``applied`` one is of unknown result: the call did what it should and fails all the same,
    a write half of it. ``loses`` tells what becomes of all that was not flushed: it reads
    as ``zeros``, or the ``old`` bytes are there again. ``only`` calls of this name fail, if any.
    """

    number: int
    what: str
    lasting: bool = False
    applied: bool = False
    loses: str = ""
    only: str = ""

    def strikes(self, number: int, name: str) -> bool:
        """Whether the call of this number and name is one that fails."""
        if self.only not in ("", name):
            return False
        return number == self.number or (self.lasting and number > self.number)

    def __str__(self) -> str:
        words = [word for word in ("lasting", "applied") if getattr(self, word)]
        return " ".join([f"{self.what}@{self.number}", *words, self.loses]).strip()


@dataclass
class _File:
    """A descriptor on the mount."""

    path: str
    is_directory: bool


@dataclass
class _Write:
    """What one write did, so that it can be lost."""

    offset: int
    length: int
    old: bytes
    old_size: int


class Calls:
    """Counts, and lets the calls fail. Used by the threads of one life, which take turns.

    ``struck`` of them failed, ``struck_here`` of the thread that made this: the engine's. The mount
    ``tells`` that files have arrived in OneData, as some cannot.
    """

    def __init__(self, root: bytes, fault: Fault | None = None, *, tells: bool = True) -> None:
        self._root = root
        self._files: dict[int, _File] = {}
        self._unflushed: dict[str, list[_Write]] = {}
        self._tells = tells
        self.fault = fault
        self.number = 0
        self.struck = 0
        self.struck_here = 0
        self._here = threading.get_ident()
        self.names: list[str] = []
        self.dead = False
        self.hung = False

    def __getattr__(self, name: str) -> Any:
        found = getattr(os, name)
        if name in _NO_CALLS or not isroutine(found):
            return found
        assert name in _LOCAL, f"os.{name} is not numbered"

        def local(fd: int, *arguments: Any, **named: Any) -> Any:
            assert fd not in self._files, f"os.{name} of the mount is not numbered"
            return found(fd, *arguments, **named)

        return local

    # -- failing --------------------------------------------------------------------------------

    def make(self, name: str, act: Callable[[], Any], half: Callable[[], Any] | None = None) -> Any:
        """Make a call on the mount, or let it fail; ``half`` is what an unknown result did."""
        if self.dead:
            raise Crash
        if self.hung:
            raise Hung
        self.number += 1
        self.names.append(name)
        fault = self.fault
        if fault is None or not fault.strikes(self.number, name):
            return act()
        self.struck += 1
        self.struck_here += threading.get_ident() == self._here
        if fault.applied:
            (half or act)()
        return self._strike(fault)

    def _strike(self, fault: Fault) -> Any:
        if fault.loses:
            self.lose(fault.loses)
        if fault.what == "crash":
            self.die()
        if fault.what == "hang":
            self.hung = True
            raise Hung
        number = getattr(errno, fault.what)
        raise OSError(number, os.strerror(number))

    def die(self) -> None:
        """Die outside of any call."""
        self.dead = True
        raise Crash

    def lose(self, how: str) -> None:
        """Lose what was written and not flushed."""
        for path, writes in self._unflushed.items():
            with suppress(FileNotFoundError), open(path, "r+b") as file:
                for write in reversed(writes):
                    file.seek(write.offset)
                    file.write(write.old if how == "old" else bytes(write.length))
                    if how == "old":
                        file.truncate(write.old_size)
        self._unflushed.clear()

    # -- descriptors ----------------------------------------------------------------------------

    def _is_ours(self, path: Any, dir_fd: int | None) -> bool:
        if dir_fd is not None:
            return dir_fd in self._files
        if isinstance(path, int):
            return path in self._files
        return os.fsencode(path).startswith(self._root)

    def _opened(self, fd: int, flags: int) -> int:
        path = os.readlink(f"/proc/self/fd/{fd}")
        self._files[fd] = _File(path, bool(flags & (os.O_PATH | os.O_DIRECTORY)))
        return fd

    def open(self, path: bytes, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        def act() -> int:
            return self._opened(os.open(path, flags, mode, dir_fd=dir_fd), flags)

        if not self._is_ours(path, dir_fd):
            return os.open(path, flags, mode, dir_fd=dir_fd)
        return int(
            self.make("open", act, lambda: os.close(os.open(path, flags, mode, dir_fd=dir_fd)))
        )

    def open_beneath(self, root: int, path: bytes, flags: int, mode: int = 0) -> int:
        def act() -> int:
            return self._opened(open_beneath(root, path, flags, mode), flags)

        return int(self.make("walk", act, lambda: None))

    def close(self, fd: int) -> None:
        file = self._files.pop(fd, None)
        if file is None or file.is_directory or self.dead or self.hung:
            os.close(fd)
            return
        # The kernel closes the descriptor whatever the file system answers.
        self.make("close", lambda: os.close(fd), lambda: None)

    # -- contents -------------------------------------------------------------------------------

    def pwrite(self, fd: int, content: bytes, offset: int) -> int:
        return self._write(fd, bytes(content), offset, lambda part: os.pwrite(fd, part, offset))

    def write(self, fd: int, content: bytes) -> int:
        offset = os.lseek(fd, 0, os.SEEK_CUR)
        return self._write(fd, bytes(content), offset, lambda part: os.write(fd, part))

    def _write(self, fd: int, content: bytes, offset: int, act: Callable[[bytes], int]) -> int:
        def write(part: bytes) -> int:
            path = self._files[fd].path
            with open(path, "rb") as file:
                old = os.pread(file.fileno(), len(part), offset)
            size = os.fstat(fd).st_size
            self._unflushed.setdefault(path, []).append(_Write(offset, len(part), old, size))
            return act(part)

        if fd not in self._files:
            return act(content)
        half = content[: len(content) // 2]
        return int(self.make("write", lambda: write(content), lambda: write(half)))

    def fsync(self, fd: int) -> None:
        def act() -> None:
            os.fsync(fd)
            self._unflushed.pop(self._files[fd].path, None)

        if fd not in self._files:
            os.fsync(fd)
            return
        self.make("fsync", act)

    def ftruncate(self, fd: int, length: int) -> None:
        if fd not in self._files:
            os.ftruncate(fd, length)
            return
        self.make("truncate", lambda: os.ftruncate(fd, length))

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        return bytes(self._on(fd, "read", lambda: os.pread(fd, length, offset)))

    def splice(self, fd: int, pipe: int, length: int, *, offset_src: int) -> int:
        def act() -> int:
            return os.splice(fd, pipe, length, offset_src=offset_src)

        # The kernel knows by itself where the file ended when it was opened.
        ends = fd in self._files and offset_src >= os.fstat(fd).st_size
        return act() if ends else int(self._on(fd, "read", act))

    def fstat(self, fd: int) -> os.stat_result:
        found: os.stat_result = self._on(fd, "stat", lambda: os.fstat(fd))
        return found

    def listdir(self, fd: int) -> list[str]:
        return list(self._on(fd, "list", lambda: os.listdir(fd)))

    def _on(self, fd: int, name: str, act: Callable[[], Any]) -> Any:
        return self.make(name, act) if fd in self._files else act()

    # -- names ----------------------------------------------------------------------------------

    def stat(
        self, path: Any, *, dir_fd: int | None = None, follow_symlinks: bool = True
    ) -> os.stat_result:
        def act() -> os.stat_result:
            return os.stat(path, dir_fd=dir_fd, follow_symlinks=follow_symlinks)

        found: os.stat_result = self.make("stat", act) if self._is_ours(path, dir_fd) else act()
        return found

    def look_up(self, directory: int, name: bytes) -> Looked:
        found: Looked = self._on(directory, "look", lambda: look_up(directory, name))
        return found

    def getxattr(self, path: bytes, attribute: str, *, follow_symlinks: bool) -> bytes:
        """Answer as OneData does of a file that it has all bytes of."""

        def act() -> bytes:
            os.stat(path, follow_symlinks=follow_symlinks)
            if not self._tells:
                raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP), path)
            return b"100%"

        return bytes(self.make("attribute", act))

    def mkdir(self, name: bytes, mode: int = 0o777, *, dir_fd: int) -> None:
        self.make("mkdir", lambda: os.mkdir(name, mode, dir_fd=dir_fd))

    def unlink(self, name: bytes, *, dir_fd: int) -> None:
        self.make("unlink", lambda: self._unlink(name, dir_fd))

    def _unlink(self, name: bytes, dir_fd: int) -> None:
        os.unlink(name, dir_fd=dir_fd)
        self._unflushed.pop(os.readlink(f"/proc/self/fd/{dir_fd}") + "/" + os.fsdecode(name), None)

    def rmdir(self, name: bytes, *, dir_fd: int) -> None:
        self.make("rmdir", lambda: os.rmdir(name, dir_fd=dir_fd))

    def rename_new(self, origin: int, source: bytes, destination: int, target: bytes) -> None:
        self.make("rename", lambda: rename_new(origin, source, destination, target))

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Stand between the replica's code and the kernel."""
        with (
            mock.patch.object(folder, "os", self),
            mock.patch.object(inplace, "os", self),
            mock.patch.object(pour, "os", self),
            # Bound when it was defined.
            mock.patch.dict(pour.Pour.run.__kwdefaults__, read=self.pread),
            mock.patch.object(folder, "look_up", self.look_up),
            mock.patch.object(folder, "open_beneath", self.open_beneath),
            mock.patch.object(folder, "rename_new", self.rename_new),
        ):
            yield
