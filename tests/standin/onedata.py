"""A FUSE file system that behaves like OneData's client, over a plain backing folder.

Always, as the facts about OneData have it: no symbolic or hard links, whole-second times, link
count 1, directories of size 0, entry and attribute timeout 0, rename over a target as delete +
rename (the point between them is called ``replace``), creating as "make, and fail if it exists",
directory fsync without effect, write errors that come late and once. Every operation is counted.

By a profile (``profiles``: 18.02 and 21.02; ``plain``, the default, has none of these): data held
back per handle and stored by fsync, close, read or when the buffer is full (that point is called
``store``), one-shot errors of it; a lost connection that drops all buffers while fsync and close
answer 0, or hangs (18.02); a handle that truncates again when it is opened anew; extended
attributes with the replication progress; ownership refused or ignored; times that are set back
late or not taken; names that are not UTF-8 refused; special names not listed; empty statfs.

By the control socket (``mounted``): latency, a hang of everything, faults of every kind
(``weather.Fault``), late sizes and times and listings (``views``), quota and read-only storage
(``space``), names that are refused or taken for others (``refusals``), a log of all calls
(``log``). Two mounts as two providers: ``providers``.

Simplified: buffers are not stored by time but by size and call alone, and every handle has one;
the events of a write are not modelled, only sizes and times that come late; listings are stale
only when told so; 21.02 refuses links too; all reads pass the kernel's cache as libfuse sets it
up; a time that was set is shown as the provider keeps it; the mount's top is inside a space; "@"
in names means something only between two providers, or when told so; a quota counts bytes of files
and no truncation.

Run as ``python -m tests.standin.onedata BACKING MOUNTPOINT CONTROL [PROFILE]``.
"""

from __future__ import annotations

import errno
import functools
import glob
import os
import stat
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

if "FUSE_LIBRARY_PATH" not in os.environ:
    # With libfuse 2 loaded, writes come in pieces of 4 KB.
    found = sorted(glob.glob("/usr/lib/*/libfuse3.so.3"))
    if found:
        os.environ["FUSE_LIBRARY_PATH"] = found[0]

import mfusepy

from tests.standin.control import Verbs, serve
from tests.standin.handles import Handles
from tests.standin.log import Log
from tests.standin.profiles import PROFILES, Profile
from tests.standin.refusals import Refusals, judged
from tests.standin.space import Space
from tests.standin.views import Late, Listings, Told, real_of
from tests.standin.weather import Deferred, Weather

# Appending is the kernel's; truncating comes with opening, as libfuse 3 has it.
_KEEP = os.O_WRONLY | os.O_RDWR | os.O_TRUNC
_SECOND = 10**9


def counted(operation: Callable[..., Any]) -> Callable[..., Any]:
    """Let an operation of the file system meet the weather first, and the log."""
    name = operation.__name__.lstrip("_")

    @functools.wraps(operation)
    def met(self: OneData, path: str, *arguments: Any) -> Any:
        number, fault = self.weather.meet(name, path)
        with self.log.call(number, name, path, arguments):
            if fault is None:
                return operation(self, path, *arguments)
            return fault.befall(
                name,
                lambda: operation(self, path, *arguments),
                lambda: self.drop(name, path, *arguments),
            )

    return met


def changing(operation: Callable[..., Any]) -> Callable[..., Any]:
    """Let an operation be refused where the storage is read-only."""

    @functools.wraps(operation)
    def met(self: OneData, *arguments: Any) -> Any:
        self.must_be_writable()
        return operation(self, *arguments)

    return met


class OneData(mfusepy.Operations):  # type: ignore[misc]  # the library has no types
    """The file system's operations; called from many threads."""

    use_ns = True

    def __init__(self, backing: str, profile: Profile) -> None:
        self.weather = Weather()
        self.log = Log()
        self.refusals = Refusals()
        self.profile = profile
        self._backing = os.fsencode(backing)
        self._space = Space(self._backing)
        self._late = Late(self._backing)
        self._listings = Listings(self._backing, profile.hidden)
        self._handles = Handles(profile, self.weather, self._space)
        self._keeps_lost_sizes = False

    def verbs(self) -> Verbs:
        """Return what the control socket may ask for."""
        own: Verbs = {
            "late": self._late.set,
            "names": self.refusals.set,
            "buffer": self._set_buffer,
            "lose_connection": self._lose_connection,
            "start_log": self.log.start,
            "stop_log": self.log.stop,
        }
        return own | self.weather.verbs() | self._listings.verbs() | self._space.verbs()

    def _set_buffer(self, size: int) -> None:
        self._handles.buffer = size

    def _lose_connection(self, keep_sizes: bool) -> None:
        if self.profile.hangs_without_provider:
            self.weather.cover()
        else:
            self._keeps_lost_sizes = keep_sizes
            self._handles.lose_all()

    @judged
    def _at(self, path: str) -> bytes:
        return self._backing + os.fsencode(path)

    def must_be_writable(self) -> None:
        """Refuse a change of a read-only storage."""
        if self._space.read_only:
            raise OSError(errno.EROFS, "the storage is read-only")

    def drop(self, operation: str, path: str, *arguments: Any) -> Any:
        """Answer success to an operation that is not carried out."""
        if operation == "read":
            size, offset, fh = arguments
            return bytes(max(0, min(size, os.fstat(fh).st_size - offset)))
        if operation == "write":
            data, offset, fh = arguments
            self._handles.gaps.lose(self._handles[fh].ino, offset, len(data))
            return len(data)
        return 0

    @counted
    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        status = os.lstat(self._at(path))
        told = self._told(status, fh)
        return {
            "st_mode": status.st_mode,
            "st_nlink": 1,
            "st_size": told.size if stat.S_ISREG(status.st_mode) else 0,
            "st_blocks": -(-told.size // 512) if self.profile.measures_space else 0,
            "st_uid": status.st_uid,
            "st_gid": status.st_gid,
            "st_atime": _whole(status.st_atime_ns),
            "st_mtime": _whole(told.mtime_ns),
            "st_ctime": _whole(told.ctime_ns),
        }

    @counted
    def readdir(self, path: str, fh: int) -> list[str]:
        return [".", "..", *self._listings.names(path)]

    @counted
    @changing
    def mkdir(self, path: str, mode: int) -> int:
        os.mkdir(self._named(path), mode)
        return 0

    @counted
    @changing
    def rmdir(self, path: str) -> int:
        os.rmdir(self._at(path))
        return 0

    @counted
    @changing
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
    @changing
    def rename(self, old: str, new: str) -> int:
        source, target = self._at(old), self._named(new)
        if os.path.lexists(target) and not os.path.samefile(source, target):
            one, other = os.path.isdir(source), os.path.isdir(target)
            if one != other:
                raise OSError(errno.EISDIR if other else errno.ENOTDIR, "kinds differ")
            # Not atomic: whoever looks in between finds nothing.
            (os.rmdir if other else os.unlink)(target)
            if not self.weather.reach("replace", new):
                return 0
        os.rename(source, target)
        return 0

    @counted
    def chmod(self, path: str, mode: int) -> int:
        os.chmod(self._at(path), mode)
        return 0

    @counted
    def utimens(self, path: str, times: tuple[int, int] | None = None) -> int:
        at = self._at(path)
        now = time.time_ns()
        accessed, changed = (_whole(moment) for moment in times or (now, now))
        status = os.lstat(at)
        if self.profile.keeps_later_time:
            changed = max(changed, _whole(status.st_mtime_ns))
        os.utime(at, ns=(accessed, changed))
        self._late.changed(status.st_ino)
        return 0

    @counted
    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        if self._space.read_only:
            return 0  # told as success, and nothing happens
        at = self._at(path)
        ino = os.lstat(at).st_ino
        if self.profile.stores_before_truncate:
            for handle in self._handles.of(ino):
                self._handles.settle(handle, "write")
        os.truncate(at, length)
        self._handles.gaps.forget(ino, length)
        self._late.changed(ino)
        return 0

    @counted
    @changing
    def create(self, path: str, mode: int, fi: Any = None) -> int:
        fd = os.open(self._named(path), os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
        self._handles.add(fd, path, 0)
        self._handles.gaps.forget(self._handles[fd].ino, 0)
        self._late.changed(self._handles[fd].ino)
        return fd

    @counted
    def open(self, path: str, flags: int) -> int:
        if flags & os.O_ACCMODE != os.O_RDONLY:
            self.must_be_writable()
        fd = self._handles.add(os.open(self._at(path), flags & _KEEP), path, flags)
        if flags & os.O_TRUNC:
            self._handles.gaps.forget(self._handles[fd].ino, 0)
            self._late.changed(self._handles[fd].ino)
        return fd

    @counted
    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        if self._handles.buffer:
            self._handles.settle(self._handles[fh], "read")
        return os.pread(fh, size, offset)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        try:
            return int(self._write(path, data, offset, fh))
        except Deferred as error:
            # Write-behind: the error comes out later, once.
            handle = self._handles[fh]
            self._handles.gaps.lose(handle.ino, offset, len(data))
            handle.fails_later(error)
            return len(data)

    @counted
    def _write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        handle = self._handles[fh]
        self.must_be_writable()
        self._handles.write(handle, data, offset)
        self._late.changed(handle.ino)
        self.weather.counts["bytes_written"] += len(data)
        return len(data)

    @counted
    def flush(self, path: str, fh: int) -> int:
        self._handles.settle(self._handles[fh], "close")
        return 0

    @counted
    def fsync(self, path: str, datasync: int, fh: int) -> int:
        self._handles.settle(self._handles[fh], "fsync")
        return 0

    @counted
    def fsyncdir(self, path: str, datasync: int, fh: int) -> int:
        raise OSError(errno.ENOSYS, "no effect")

    def release(self, path: str, fh: int) -> int:
        try:
            return int(self._release(path, fh))
        finally:
            self._handles.close(fh)

    @counted
    def _release(self, path: str, fh: int) -> int:
        return 0

    @counted
    def statfs(self, path: str) -> dict[str, int]:
        if not self.profile.measures_space:
            return {"f_bsize": 4096, "f_namemax": 255}
        space = os.statvfs(self._backing)
        names = ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_namemax")
        return {name: getattr(space, name) for name in names}

    def _named(self, path: str) -> bytes:
        """Return where a new name goes, if OneData takes that name."""
        at = self._at(path, is_new=True)
        if self.profile.name_error:
            try:
                at.decode()
            except UnicodeDecodeError as error:
                raise OSError(self.profile.name_error, "not UTF-8") from error
        return at

    def _told(self, status: os.stat_result, fh: int | None) -> Told:
        told = real_of(status) if fh is not None else self._late.told(status)
        ends = [handle.end() for handle in self._handles.of(status.st_ino) if handle.pending]
        if self._keeps_lost_sizes:
            ends.append(self._handles.gaps.end(status.st_ino))
        return told._replace(size=max(told.size, *ends)) if ends else told


class OneDataOfAge(OneData):
    """What the profiles add to the operations; the plain one does not even have these."""

    _lag = 0.0

    def verbs(self) -> Verbs:
        """Return what the control socket may ask for."""
        return super().verbs() | {"lag": self._set_lag}

    def _set_lag(self, seconds: float) -> None:
        self._lag = seconds

    @counted
    def chown(self, path: str, uid: int, gid: int) -> int:
        if self.profile.chown_error:
            raise OSError(self.profile.chown_error, "no owners")
        return 0

    @counted
    def getxattr(self, path: str, name: str, position: int = 0) -> bytes:
        found = self._xattrs(path).get(name)
        if found is None:
            raise OSError(errno.ENODATA, "no such attribute")
        return found.encode()

    @counted
    def listxattr(self, path: str) -> list[str]:
        return list(self._xattrs(path))

    def _xattrs(self, path: str) -> dict[str, str]:
        status = os.lstat(self._at(path))
        found = {self.profile.guid_xattr: str(status.st_ino), "org.onedata.space_id": "standin"}
        if stat.S_ISREG(status.st_mode):
            found["org.onedata.replication_progress"] = f"{self._progress(status)}%"
        return found

    def _progress(self, status: os.stat_result) -> int:
        """Return how much of what was written the provider knows, in whole per cent."""
        handles, ino = self._handles, status.st_ino
        if time.time_ns() - status.st_ctime_ns < self._lag * 10**9:
            return 0
        there = min(status.st_size, self._late.told(status).size)
        missing = handles.gaps.size(ino) + sum(handle.held() for handle in handles.of(ino))
        whole = max(status.st_size, handles.gaps.end(ino), *(h.end() for h in handles.of(ino)), 0)
        return max(0, 100 * min(there, whole - missing) // whole) if whole else 0


def _whole(nanoseconds: int) -> int:
    return nanoseconds // _SECOND * _SECOND


def main() -> None:
    """Mount and serve until unmounted."""
    backing, mount_point, control, *named = sys.argv[1:]
    profile = PROFILES[named[0] if named else "plain"]
    os.umask(0)
    standin = (OneDataOfAge if profile.guid_xattr else OneData)(backing, profile)
    threading.Thread(target=serve, args=(control, standin.verbs()), daemon=True).start()
    options = {"entry_timeout": 0, "attr_timeout": 0, "negative_timeout": 0, "max_threads": 64}
    mfusepy.FUSE(
        standin,
        mount_point,
        foreground=True,
        nothreads=False,
        fsname="onedata-standin",
        **options,
    )


if __name__ == "__main__":
    main()
