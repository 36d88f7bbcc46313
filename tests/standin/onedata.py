"""A FUSE file system that behaves like OneData's client, over a plain backing folder.

No symbolic or hard links, whole-second times, entry and attribute timeout 0, rename over a target
as delete + rename, directory fsync without effect, write-behind whose errors are reported once.
Every operation is counted; latency, faults and hangs are set over a control socket.

Run as ``python -m tests.standin.onedata BACKING MOUNTPOINT CONTROL``.
"""

from __future__ import annotations

import errno
import functools
import glob
import json
import os
import re
import socket
import stat
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

if "FUSE_LIBRARY_PATH" not in os.environ:
    # With libfuse 2 loaded, writes come in pieces of 4 KB.
    found = sorted(glob.glob("/usr/lib/*/libfuse3.so.3"))
    if found:
        os.environ["FUSE_LIBRARY_PATH"] = found[0]

import mfusepy

_KEEP = os.O_RDONLY | os.O_WRONLY | os.O_RDWR | os.O_EXCL


@dataclass
class Fault:
    """Fail an operation ``times`` times (-1: for ever), from its ``nth`` matching call on."""

    operation: str
    number: int
    nth: int = 1
    times: int = 1
    pattern: str = ""
    seen: int = 0

    def strikes(self, operation: str, path: str) -> bool:
        """Count a call and tell whether it fails."""
        if operation != self.operation or not re.search(self.pattern, path) or not self.times:
            return False
        self.seen += 1
        if self.seen < self.nth:
            return False
        self.times -= 1 if self.times > 0 else 0
        return True


class Weather:
    """What the control socket sets, and what it asks for."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.latency = 0.0
        self.faults: list[Fault] = []
        self.clear_sky = threading.Event()
        self.clear_sky.set()
        self._guard = threading.Lock()

    def meet(self, operation: str, path: str) -> None:
        """Count a call, wait, hang or fail as told."""
        with self._guard:
            self.counts[operation] += 1
            struck = next((f for f in self.faults if f.strikes(operation, path)), None)
        self.clear_sky.wait()
        if self.latency:
            time.sleep(self.latency)
        if struck is not None:
            raise OSError(struck.number, os.strerror(struck.number))

    def command(self, request: dict[str, Any]) -> Any:
        """Carry out one request of the control socket."""
        verb = request.pop("verb")
        with self._guard:
            if verb == "counts":
                return dict(self.counts)
            if verb == "reset":
                self.counts.clear()
            elif verb == "latency":
                self.latency = request["seconds"]
            elif verb == "fail":
                self.faults.append(Fault(**request))
            elif verb == "clear":
                self.faults.clear()
            elif verb == "hang":
                self.clear_sky.clear()
            elif verb == "release":
                self.clear_sky.set()
            else:
                raise ValueError(verb)
        return None

    def serve(self, path: str) -> None:
        """Answer on the control socket for ever."""
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listening.bind(path)
        listening.listen()
        while True:
            connection, _ = listening.accept()
            with connection, connection.makefile("rwb") as stream:
                reply = self.command(json.loads(stream.readline()))
                stream.write(json.dumps(reply).encode() + b"\n")
                stream.flush()


def counted(operation: Callable[..., Any]) -> Callable[..., Any]:
    """Let an operation of the file system meet the weather first."""

    @functools.wraps(operation)
    def met(self: OneData, path: str, *arguments: Any) -> Any:
        self.weather.meet(operation.__name__, path)
        return operation(self, path, *arguments)

    return met


class OneData(mfusepy.Operations):  # type: ignore[misc]  # the library has no types
    """The file system's operations; called from many threads."""

    use_ns = True

    def __init__(self, backing: str, weather: Weather) -> None:
        self.weather = weather
        self._backing = os.fsencode(backing)
        self._late: dict[int, int] = {}

    def _at(self, path: str) -> bytes:
        return self._backing + os.fsencode(path)

    @counted
    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        status = os.lstat(self._at(path))
        whole = {
            name: getattr(status, name) // 10**9 * 10**9
            for name in ("st_atime_ns", "st_mtime_ns", "st_ctime_ns")
        }
        return {
            "st_mode": status.st_mode,
            "st_nlink": 1,
            "st_size": status.st_size if stat.S_ISREG(status.st_mode) else 0,
            "st_uid": status.st_uid,
            "st_gid": status.st_gid,
            "st_atime": whole["st_atime_ns"],
            "st_mtime": whole["st_mtime_ns"],
            "st_ctime": whole["st_ctime_ns"],
        }

    @counted
    def readdir(self, path: str, fh: int) -> list[str]:
        return [".", "..", *map(os.fsdecode, os.listdir(self._at(path)))]

    @counted
    def mkdir(self, path: str, mode: int) -> int:
        os.mkdir(self._at(path), mode)
        return 0

    @counted
    def rmdir(self, path: str) -> int:
        os.rmdir(self._at(path))
        return 0

    @counted
    def unlink(self, path: str) -> int:
        os.unlink(self._at(path))
        return 0

    @counted
    def symlink(self, target: str, source: str) -> int:
        raise OSError(errno.ENOSYS, "no symbolic links")

    @counted
    def link(self, target: str, source: str) -> int:
        raise OSError(errno.ENOSYS, "no hard links")

    @counted
    def mknod(self, path: str, mode: int, dev: int) -> int:
        raise OSError(errno.EOPNOTSUPP, "no special files")

    @counted
    def rename(self, old: str, new: str) -> int:
        source, target = self._at(old), self._at(new)
        if os.path.lexists(target) and not os.path.samefile(source, target):
            one, other = os.path.isdir(source), os.path.isdir(target)
            if one != other:
                raise OSError(errno.EISDIR if other else errno.ENOTDIR, "kinds differ")
            # Not atomic: whoever looks in between finds nothing.
            (os.rmdir if other else os.unlink)(target)
        os.rename(source, target)
        return 0

    @counted
    def chmod(self, path: str, mode: int) -> int:
        os.chmod(self._at(path), mode)
        return 0

    @counted
    def utimens(self, path: str, times: tuple[int, int] | None = None) -> int:
        now = time.time_ns()
        os.utime(self._at(path), ns=tuple(t // 10**9 * 10**9 for t in times or (now, now)))  # type: ignore[arg-type]
        return 0

    @counted
    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        os.truncate(self._at(path), length)
        return 0

    @counted
    def create(self, path: str, mode: int, fi: Any = None) -> int:
        return os.open(self._at(path), os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)

    @counted
    def open(self, path: str, flags: int) -> int:
        return os.open(self._at(path), flags & _KEEP)

    @counted
    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return os.pread(fh, size, offset)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        try:
            self.weather.meet("write", path)
        except OSError as error:
            # Write-behind: the error comes out later, once.
            self._late[fh] = error.errno or errno.EIO
            return len(data)
        self.weather.counts["bytes_written"] += len(data)
        return os.pwrite(fh, data, offset)

    @counted
    def flush(self, path: str, fh: int) -> int:
        return self._report(fh)

    @counted
    def fsync(self, path: str, datasync: int, fh: int) -> int:
        return self._report(fh)

    def _report(self, fh: int) -> int:
        number = self._late.pop(fh, 0)
        if number:
            raise OSError(number, os.strerror(number))
        return 0

    def fsyncdir(self, path: str, datasync: int, fh: int) -> int:
        raise OSError(errno.ENOSYS, "no effect")

    @counted
    def release(self, path: str, fh: int) -> int:
        self._late.pop(fh, None)
        os.close(fh)
        return 0

    def statfs(self, path: str) -> dict[str, int]:
        return {"f_bsize": 4096, "f_namemax": 255}


def main() -> None:
    """Mount and serve until unmounted."""
    backing, mount_point, control = sys.argv[1:]
    os.umask(0)
    weather = Weather()
    threading.Thread(target=weather.serve, args=(control,), daemon=True).start()
    options = {"entry_timeout": 0, "attr_timeout": 0, "negative_timeout": 0, "max_threads": 64}
    mfusepy.FUSE(
        OneData(backing, weather),
        mount_point,
        foreground=True,
        nothreads=False,
        fsname="onedata-standin",
        **options,
    )


if __name__ == "__main__":
    main()
