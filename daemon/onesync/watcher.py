"""Watches the working copy and marks what may have changed.

Kernel events come through pyinotify, with our own recursion and our own map from watch to path;
watchdog's polling observer serves where inotify is blind. A watcher's thread never blocks on
anything but the kernel, and its sink's calls are quick.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import struct
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pyinotify
from watchdog.events import (
    EVENT_TYPE_CREATED,
    EVENT_TYPE_MOVED,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers.polling import PollingObserverVFS

from onesync.beneath import open_beneath, open_plain
from onesync.core.model import (
    RelPath,
    is_beneath,
    is_reserved,
    join,
    lies_in,
    parent_of,
    renamed_path,
)
from onesync.local import Origin, mount_of, origin_of

log = logging.getLogger(__name__)

_WRITTEN = pyinotify.IN_MODIFY | pyinotify.IN_CLOSE_WRITE
_PLAIN = pyinotify.IN_CREATE | pyinotify.IN_ATTRIB | _WRITTEN
"""What may happen to a file of one name in any order, as far as a sink is concerned."""
_COMES_OR_GOES = (
    pyinotify.IN_CREATE | pyinotify.IN_DELETE | pyinotify.IN_MOVED_FROM | pyinotify.IN_MOVED_TO
)
MASK = (
    pyinotify.IN_CREATE
    | pyinotify.IN_MODIFY
    | pyinotify.IN_ATTRIB
    | pyinotify.IN_CLOSE_WRITE
    | pyinotify.IN_DELETE
    | pyinotify.IN_MOVED_FROM
    | pyinotify.IN_MOVED_TO
    | pyinotify.IN_ONLYDIR
)
_HEAD = struct.Struct("iIII")
_BUFFER_BYTES = 1 << 18
_POLL_SECONDS = 10.0
_REST_SECONDS = 0.02
"""The kernel's queue holds 16,384 events: half a million in a second fill it in 33 ms."""

_BURST_REST_SECONDS = 0.01
_BURST_BYTES = 1 << 14
"""What is more than that, some four hundred events for one rest, comes in a burst."""

_GATHERED_SECONDS = 1.0
_GATHERED_BYTES = 1 << 24
_READ_AFTER = 100
"""So many directories are watched or listed before the kernel's queue is read again."""

_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_DEEPEST = 500
"""Watchdog calls itself for each level that it lists: what lies deeper, the scan tells."""
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)  # ELOOP: a link stands there now
_REMOTE = ("nfs", "nfs4", "cifs", "smb3", "lustre", "ceph", "glusterfs", "beegfs", "9p", "fuse")


class Sink(Protocol):
    """Where a watcher tells; called from its thread."""

    def changed(self, path: RelPath) -> None:
        """``path`` may have changed."""

    def touched(self, paths: Mapping[RelPath, bool]) -> None:
        """All of these files may have changed; True: somebody wrote into one, or closed it."""

    def deleted(self, path: RelPath) -> None:
        """Somebody deleted ``path``, or moved it away, with all that was beneath."""

    def moved(self, source: RelPath, target: RelPath) -> None:
        """The kernel renamed ``source`` to ``target``."""

    def tree_changed(self, path: RelPath) -> None:
        """Anything beneath ``path`` may have changed."""

    def overflowed(self) -> None:
        """Events were dropped."""

    def unwatched(self, path: RelPath, reason: str) -> None:
        """``path``, the first of perhaps many, cannot be watched and is polled from now on."""


class Watcher(Protocol):
    """What both watchers do."""

    def start(self) -> None:
        """Watch; returns when every directory there is watched."""

    def drain(self, timeout: float) -> bool:
        """Wait until the sink was told of all that happened before; False after ``timeout``."""

    def stop(self) -> None:
        """Watch no more."""

    def watches(self) -> int:
        """Return the number of kernel watches."""

    def polled(self) -> int:
        """Return the number of directories that are looked at from time to time instead."""


@dataclass(frozen=True, slots=True)
class _Event:
    """One record of inotify(7)."""

    watch: int
    mask: int
    cookie: int
    name: bytes


@dataclass(frozen=True, slots=True)
class _Own:
    """The root, opened, while it is the one that was there at the start, and its mount's id."""

    fd: int
    mount: int


@contextmanager
def _opened(path: bytes, flags: int = os.O_PATH) -> Iterator[int]:
    fd = open_plain(path, flags | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


class InotifyWatcher:
    """Kernel events."""

    def __init__(
        self,
        root: bytes,
        cookies: bytes,
        sink: Sink,
        interval: float = _POLL_SECONDS,
        rest: float = _REST_SECONDS,
    ) -> None:
        """Watch ``root``; cookie files are made in ``cookies``. Both are absolute.

        What cannot be watched is told as changed every ``interval`` seconds, with what went since
        it was looked at before, and tried again. Events are left to gather for ``rest`` seconds.
        """
        self._interval = interval
        self._rest = rest
        self._ends = False
        self._unwatched: set[RelPath] = set()
        self._listings: dict[RelPath, bytes] = {}
        self._origin: Origin | None = None
        self._own: _Own | None = None
        self._polled_at = 0.0
        self._root = root
        self._cookies = cookies
        self._sink = sink
        self._manager = pyinotify.WatchManager()
        self._paths: dict[int, RelPath] = {}
        self._cookie_watch = -1
        self._waiting: dict[bytes, threading.Event] = {}
        self._leaving: dict[int, tuple[RelPath, bool]] = {}
        self._mounted: set[int] = set()
        self._mount = -1
        self._untold: deque[bytes] = deque()
        self._untold_bytes = 0
        self._more = select.poll()
        self._more.register(self._manager.get_fd(), select.POLLIN)
        self._wake = os.eventfd(0)
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)

    def start(self) -> None:
        os.makedirs(self._cookies, exist_ok=True)
        for name in os.listdir(self._cookies):
            os.unlink(join(self._cookies, name))
        self._watch_cookies()
        with self._looking():
            self._watch_tree(b"")
        self._thread.start()

    def _watch_cookies(self) -> None:
        if self._cookie_watch >= 0:
            return
        with suppress(OSError), _opened(self._cookies) as fd:
            self._cookie_watch = self._add(fd)

    def drain(self, timeout: float) -> bool:
        name = uuid.uuid4().hex.encode()
        seen = self._waiting[name] = threading.Event()
        path = Path(os.fsdecode(join(self._cookies, name)))
        try:
            path.touch()
            os.eventfd_write(self._wake, 1)
            return seen.wait(timeout)
        except OSError:
            return False  # such as a full disk: nothing is known to have arrived
        finally:
            self._waiting.pop(name, None)
            with suppress(OSError):
                path.unlink()

    def stop(self) -> None:
        # By a descriptor of its own: a cookie needs room on the disk.
        self._ends = True
        os.eventfd_write(self._wake, 1)
        if self._thread.is_alive():
            self._thread.join()
        self._manager.close()
        os.close(self._wake)

    def watches(self) -> int:
        return len(self._paths)

    def polled(self) -> int:
        return len(self._unwatched)

    def _run(self) -> None:
        queue = self._manager.get_fd()
        both, wake = select.poll(), select.poll()
        both.register(queue, select.POLLIN)
        both.register(self._wake, select.POLLIN)
        wake.register(self._wake, select.POLLIN)
        while not self._ends:
            ready = [fd for fd, _ in both.poll(0 if self._untold else self._patience())]
            if self._wake in ready:
                os.eventfd_read(self._wake)
            if queue in ready or self._untold:
                self._gather(wake)
                self._take_gathered()
                if not self._untold:  # else where it was moved to may come yet
                    self._tell_of_left()
                # Each event that finds us waiting wakes us up, at the cost of who caused it: a
                # writer of small files was 18 % slower. The end may have been told with a drain.
                if not self._ends:
                    wake.poll(1000 * self._rest)
            is_due = time.monotonic() >= self._polled_at + self._interval
            # Without the cookies' watch nobody tells when those are done who wait.
            if (self._unwatched and is_due) or (self._waiting and self._cookie_watch < 0):
                self._poll()

    def _gather(self, wake: select.poll) -> None:
        """Read what the kernel has, of a burst all until it is over or somebody waits for us.

        To take events apart as they come takes a processor's time while their writer needs it.
        """
        until = time.monotonic() + _GATHERED_SECONDS
        while self._read() >= _BURST_BYTES and time.monotonic() < until:
            if self._is_awaited() or wake.poll(1000 * _BURST_REST_SECONDS):
                break

    def _is_awaited(self) -> bool:
        """Whether a drain waits: what tells that it is done may have been read already."""
        return not all(seen.is_set() for seen in list(self._waiting.values()))

    def _take_gathered(self) -> None:
        """Take apart what was gathered; what is read meanwhile may be of a burst that goes on."""
        for _ in range(len(self._untold)):
            if self._ends:
                return
            events = self._untold.popleft()
            self._untold_bytes -= len(events)
            self._take_all(events)
            self._read()

    def _read(self) -> int:
        """Take what the kernel's queue holds, before it is full; returns how many bytes."""
        size, last = 0, _BUFFER_BYTES
        while last > _BUFFER_BYTES // 2 and self._untold_bytes < _GATHERED_BYTES:
            if not self._more.poll(0):
                break
            events = os.read(self._manager.get_fd(), _BUFFER_BYTES)
            self._untold.append(events)
            last = len(events)
            self._untold_bytes += last
            size += last
        return size

    def _patience(self) -> float | None:
        """Return the milliseconds until the next poll; None where nothing is polled."""
        if not self._unwatched:
            return None
        return max(0.0, 1000 * (self._polled_at + self._interval - time.monotonic()))

    def _poll(self) -> None:
        """Tell of all that is not watched, and watch it where that is possible again."""
        is_blind = self._cookie_watch < 0
        self._watch_cookies()
        waiting = list(self._waiting.values()) if is_blind else []
        tops, before = self._tops(), dict(self._listings)
        with self._looking():
            for top in tops:
                self._watch_tree(top)
        self._forget_gone(before)
        self._polled_at = time.monotonic()
        # After the watches: what changed before they stood is found by these scans.
        for top in [b""] if waiting else tops:
            self._sink.tree_changed(top)
        self._let_go(waiting)

    @contextmanager
    def _looking(self) -> Iterator[None]:
        """Let what is listed in the block be compared with what was there before.

        Only beneath the root that was there at the start, and on its own mount: what stands in its
        place, or is mounted over some of it, hides what nobody deleted.
        """
        with ExitStack() as held:
            with suppress(OSError):
                fd = held.enter_context(_opened(self._root, os.O_RDONLY))
                origin = origin_of(fd)
                self._origin = self._origin or origin
                if self._origin.is_same(origin):
                    self._own = _Own(fd, mount_of(fd))
            if self._own is None:
                self._listings.clear()
            try:
                yield
            finally:
                self._own = None

    def _forget_gone(self, before: Mapping[RelPath, bytes]) -> None:
        """Poll no more what is gone; ``before`` are the listings before all of it was listed."""
        listings = self._listings
        missed = [path for path in self._unwatched if listings.get(path) is before.get(path)]
        for path in missed:
            if path and self._is_gone(path, {}):
                self._unwatched.discard(path)
        for path in listings.keys() - self._unwatched:
            del listings[path]

    def _tops(self) -> list[RelPath]:
        """Return the unwatched directories that lie beneath no other one."""
        unwatched = frozenset(self._unwatched)  # at once: it may be another thread that asks
        return [path for path in unwatched if not path or not lies_in(parent_of(path), unwatched)]

    def _let_go(self, waiting: Iterable[threading.Event]) -> None:
        for seen in waiting:
            seen.set()

    def _take_all(self, events: bytes) -> None:
        # Taken apart here: pyinotify gives up on a name that is not UTF-8, and its own map of paths
        # goes stale when a directory is renamed.
        offset = 0
        plain: dict[tuple[int, bytes], int] = {}
        while offset < len(events):
            watch, mask, cookie, length = _HEAD.unpack_from(events, offset)
            offset += _HEAD.size
            name = events[offset : offset + length]
            offset += length
            if mask & ~_PLAIN or not length or watch == self._cookie_watch:
                # Such as a rename or a deletion: what came before it is told before it.
                self._tell_of_plain(plain)
                plain.clear()
                self._take(_Event(watch, mask, cookie, name.rstrip(b"\0")))
            else:
                plain[watch, name] = plain.get((watch, name), 0) | mask
        self._tell_of_plain(plain)

    def _tell_of_left(self) -> None:
        """Tell what was moved away and arrived nowhere."""
        for cookie in list(self._leaving):
            path, is_directory = self._leaving.pop(cookie)
            self._left(path, is_directory)

    def _tell_of_plain(self, events: Mapping[tuple[int, bytes], int]) -> None:
        """Tell of files of which nothing else was told meanwhile, each once."""
        touched: dict[RelPath, bool] = {}
        for (watch, name), mask in events.items():
            directory = self._paths.get(watch)
            if directory is not None:
                path = join(directory, name.rstrip(b"\0"))
                if not is_reserved(path):
                    touched[path] = touched.get(path, False) or bool(mask & _WRITTEN)
                elif mask & pyinotify.IN_CREATE:
                    self._sink.tree_changed(path)
        if touched:
            self._sink.touched(touched)

    def _take(self, event: _Event) -> None:
        if event.mask & pyinotify.IN_Q_OVERFLOW:
            held_up = list(self._waiting.values())
            self._sink.overflowed()
            self._tell_of_dead_watches()
            with self._looking():
                self._tell_of_displaced(dict(self._paths), self._watch_tree(b""))
            # After the watches: what changed before they stood is found by this scan.
            self._sink.tree_changed(b"")
            # A cookie may be among what was dropped, and all is told by this.
            self._let_go(held_up)
            return
        if event.watch == self._cookie_watch:
            self._tell_of_left()  # it came before, and is waited for
            waiting = self._waiting.get(event.name)
            if waiting is not None and not waiting.is_set():  # a cookie makes two events
                if self._unwatched:
                    self._poll()  # who waits is told what went, as by events
                waiting.set()
            return
        directory = self._paths.get(event.watch)
        if event.mask & pyinotify.IN_IGNORED:
            self._paths.pop(event.watch, None)
            self._mounted.discard(event.watch)
            if directory == b"":
                self._sink.changed(b"")  # the root is gone or unmounted: the next look tells
            return
        if directory is None:
            return
        path = join(directory, event.name) if event.name else directory
        if not is_reserved(path):
            self._tell(event, path)
        elif event.mask & _COMES_OR_GOES:
            # What it had as its old name stays in OneData as long as it stands here.
            self._sink.tree_changed(path)

    def _tell(self, event: _Event, path: RelPath) -> None:
        is_directory = bool(event.mask & pyinotify.IN_ISDIR)
        if event.mask & pyinotify.IN_MOVED_FROM:
            self._leaving[event.cookie] = (path, is_directory)
        elif event.mask & pyinotify.IN_MOVED_TO:
            self._arrived(path, is_directory, self._leaving.pop(event.cookie, None))
        elif is_directory and event.mask & pyinotify.IN_CREATE:
            self._watch_tree(path)
            self._sink.tree_changed(path)
        elif event.mask & pyinotify.IN_DELETE:
            self._sink.deleted(path)
        else:
            self._sink.changed(path)

    def _tell_of_dead_watches(self) -> None:
        """Tell which directories the kernel deleted, though its events were dropped.

        It drops a directory's watch together with the directory. It also does so where a file
        system is unmounted: only those that lie on the root's own are told, and none if the root's
        watch is dead.
        """
        alive = self._watches_alive()
        root = next((watch for watch, path in self._paths.items() if not path), None)
        if root not in alive:
            return
        for watch in [watch for watch in self._paths if watch not in alive]:
            path = self._paths.pop(watch)
            if watch not in self._mounted:
                self._sink.deleted(path)

    def _tell_of_displaced(self, before: dict[int, RelPath], found: dict[int, RelPath]) -> None:
        """Tell which directories went though their watches live: somebody holds them open.

        ``before`` are the watches as they were known, ``found`` those that a walk came upon. Told
        is only what went from a directory that is where it was.
        """
        here = {path: watch for watch, path in found.items()}
        for watch, path in before.items():
            above = here.get(parent_of(path), -1)
            is_lost = path and watch not in found and watch not in self._mounted
            if is_lost and before.get(above) == parent_of(path) and self._is_gone(path, here):
                self._paths.pop(watch, None)
                self._manager._inotify_wrapper.inotify_rm_watch(self._manager.get_fd(), watch)
                self._sink.deleted(path)

    def _is_gone(self, path: RelPath, here: dict[RelPath, int]) -> bool:
        """Whether the directory that was at ``path`` is not merely hidden by a mount, or closed."""
        if path in here:
            return here[path] not in self._mounted
        try:
            with _opened(join(self._root, path)):
                return False
        except OSError as error:
            return error.errno in _GONE

    def _watches_alive(self) -> set[int]:
        """Return the kernel's watches; none where it cannot be asked, as without a descriptor."""
        try:
            lines = Path(f"/proc/self/fdinfo/{self._manager.get_fd()}").read_text().splitlines()
        except OSError as error:
            log.warning("deletions may go unexplained", extra={"reason": str(error)})
            return set()
        words = [line.split() for line in lines if line.startswith("inotify wd:")]
        return {int(line[1].removeprefix("wd:"), 16) for line in words}

    def _arrived(
        self, path: RelPath, is_directory: bool, origin: tuple[RelPath, bool] | None
    ) -> None:
        if origin is None:
            if is_directory:
                self._watch_tree(path)
                self._sink.tree_changed(path)
            else:
                self._sink.changed(path)
            return
        if is_directory:
            self._renamed(origin[0], path)
        self._sink.moved(origin[0], path)

    def _renamed(self, source: RelPath, target: RelPath) -> None:
        """Kernel watches follow a renamed directory: give them its new name."""
        replaced = False
        if any(path.startswith((source, target)) for path in self._unwatched):
            moved = {source: target}
            self._unwatched = {renamed_path(path, moved) for path in self._unwatched}
            kept = {p: told for p, told in self._listings.items() if not is_beneath(p, target)}
            self._listings = {renamed_path(path, moved): told for path, told in kept.items()}
        for watch, path in self._paths.items():
            replaced |= path == target
            if is_beneath(path, source):
                self._paths[watch] = target + path[len(source) :]
        # A directory made inside just before the rename may not have been watched yet; and where
        # the two were exchanged, the other one stands at the source.
        self._watch_tree(target)
        self._watch_tree(source)
        if replaced:
            self._sink.tree_changed(target)

    def _left(self, path: RelPath, is_directory: bool) -> None:
        self._sink.deleted(path)
        if not is_directory:
            return
        for watch in [w for w, p in self._paths.items() if is_beneath(p, path)]:
            del self._paths[watch]
            # The kernel may have dropped it already; its refusal says nothing new.
            self._manager._inotify_wrapper.inotify_rm_watch(self._manager.get_fd(), watch)
        # Another one may have taken the name meanwhile, and lost its watches just now.
        self._watch_tree(path)
        self._sink.tree_changed(path)

    def _watch_tree(self, top: RelPath) -> dict[int, RelPath]:
        """Watch ``top`` and all beneath it, each before it is listed; returns these watches."""
        found: dict[int, RelPath] = {}
        waiting = [top]
        watch = count = 0
        while waiting and not self._ends:
            path = waiting.pop()
            count += 1
            if count % _READ_AFTER == 0:
                self._read()  # meanwhile the kernel's queue must not overflow
            if watch != -errno.ENOSPC or path not in self._unwatched:  # or it is asked in vain
                watch = self._watch(path)
            if watch >= 0:
                found[watch] = self._paths[watch] = path
            if watch >= 0 or path in self._unwatched:
                waiting += self._directories(path)
        return found

    def _directories(self, path: RelPath) -> list[RelPath]:
        is_told = self._own is not None and (path in self._unwatched or path in self._listings)
        try:
            with self._listed(path) as fd, os.scandir(fd) as items:
                names = sorted(
                    os.fsencode(i.name) + b"/" * i.is_dir(follow_symlinks=False)
                    for i in items
                    if is_told or i.is_dir(follow_symlinks=False)
                )
                if is_told:
                    self._compare(path, fd, b"".join(name + b"\0" for name in names))
        except OSError as error:
            if error.errno in _EXHAUSTED:
                self._unwatched.add(path)  # nobody knows what is in it: it is looked at again
            return []  # gone or unreadable: the scan tells
        inner = (join(path, name[:-1]) for name in names if name.endswith(b"/"))
        return [directory for directory in inner if not is_reserved(directory)]

    @contextmanager
    def _listed(self, path: RelPath) -> Iterator[int]:
        """Open a directory, to list it; within ``_looking`` beneath the root that was opened."""
        if self._own is None:
            with _opened(join(self._root, path) if path else self._root, os.O_RDONLY) as fd:
                yield fd
            return
        fd = open_beneath(self._own.fd, path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield fd
        finally:
            os.close(fd)

    def _compare(self, directory: RelPath, fd: int, names: bytes) -> None:
        """Tell what went from a directory that nobody watched since it was looked at before.

        ``names`` are sorted, each followed by NUL, those of directories by ``/`` and NUL.
        """
        before = self._listings.pop(directory, names)
        if self._own is None or mount_of(fd) != self._own.mount:
            return
        if directory in self._unwatched:
            self._listings[directory] = names
        if before == names:
            return
        for name in set(before.split(b"\0")) - set(names.split(b"\0")):
            path = join(directory, name.rstrip(b"/"))
            if not is_reserved(path):
                self._sink.deleted(path)

    def _watch(self, path: RelPath) -> int:
        """Return the kernel's number of a watch on the directory ``path``, or minus an errno."""
        try:
            with _opened(join(self._root, path) if path else self._root) as fd:
                mount = mount_of(fd)
                if not path:
                    self._mount = mount
                watch = self._add(fd)
                if mount != self._mount:
                    self._mounted.add(watch)
        except OSError as error:
            if error.errno in _GONE:  # the scan tells; a root that is away may come back
                self._unwatched -= {path} - {b""}
            elif path not in self._unwatched:
                if not self._unwatched:
                    self._sink.unwatched(path, error.strerror or "unknown")
                self._unwatched.add(path)
            return -(error.errno or errno.EIO)
        self._unwatched.discard(path)
        return watch

    def _add(self, fd: int) -> int:
        # By descriptor: pyinotify cannot encode every name, and no link is followed on the way.
        watch = self._manager._inotify_wrapper.inotify_add_watch(
            self._manager.get_fd(), f"/proc/self/fd/{fd}", MASK
        )
        if watch < 0:
            number = self._manager._inotify_wrapper.get_errno()
            raise OSError(number, os.strerror(number))
        return int(watch)


class PollingWatcher(FileSystemEventHandler):
    """Compares listings at an interval, for file systems whose changes the kernel cannot tell."""

    def __init__(self, root: bytes, sink: Sink, interval: float = 10.0) -> None:
        """Watch ``root`` every ``interval`` seconds."""
        self._root = os.fsdecode(root)
        self._sink = sink
        self._observer = PollingObserverVFS(_lstat, _listed, polling_interval=interval)

    def start(self) -> None:
        self._observer.schedule(self, self._root, recursive=True)
        self._observer.start()

    def drain(self, timeout: float) -> bool:
        """A poll proves nothing: have everything scanned instead."""
        self._sink.tree_changed(b"")
        return timeout >= 0

    def stop(self) -> None:
        self._observer.stop()
        self._observer.join()

    def watches(self) -> int:
        return 0

    def polled(self) -> int:
        return 0

    def on_any_event(self, event: FileSystemEvent) -> None:
        """Mark both ends."""
        is_new = event.event_type in (EVENT_TYPE_CREATED, EVENT_TYPE_MOVED)
        # What is in a directory that was there before has events of its own.
        mark = self._sink.tree_changed if event.is_directory and is_new else self._sink.changed
        for name in (event.src_path, event.dest_path):
            if name:
                path = os.fsencode(os.path.relpath(os.fsdecode(name), self._root))
                if path == b"." or is_reserved(parent_of(path)):
                    continue
                if is_reserved(path):
                    self._sink.tree_changed(path)
                else:
                    mark(path)


def _lstat(path: str) -> os.stat_result:
    """Look at ``path`` itself, with the change time as its modification time.

    Watchdog follows links unless told, and sees neither a new mode nor a rewrite that keeps the
    modification time.
    """
    above, name = os.path.split(os.fsencode(path))
    with _opened(above) as fd:
        status = os.stat(name, dir_fd=fd, follow_symlinks=False)
    return os.stat_result(tuple(status), {"st_mtime": status.st_ctime_ns})


def _listed(path: str | None) -> Iterator[os.DirEntry[str]]:
    """List a directory, following no link on the way; what cannot be listed, the scan tells."""
    assert path is not None
    if path.count("/") > _DEEPEST:
        return iter(())
    try:
        with _opened(os.fsencode(path), os.O_RDONLY) as fd, os.scandir(fd) as items:
            return iter(list(items))
    except OSError:
        return iter(())


def choose_watcher(root: bytes, cookies: bytes, sink: Sink) -> Watcher:
    """Return the watcher that sees what happens at ``root``."""
    if file_system_of(root).startswith(_REMOTE):
        return PollingWatcher(root, sink)
    try:
        return InotifyWatcher(root, cookies, sink)
    except OSError as error:
        log.warning("no kernel events to be had, polling", extra={"reason": str(error)})
        return PollingWatcher(root, sink)


def file_system_of(path: bytes) -> str:
    """Return the type of the file system that the local directory ``path`` lies on."""
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as table:
        for line in table:
            if line.split()[2] == wanted:
                return line.partition(" - ")[2].split()[0]
    return ""
