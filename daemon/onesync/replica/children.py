"""The replica behind disposable child processes.

A call stuck on a hung mount can be neither cancelled nor killed. So every call is made by a child;
a child whose call does not advance for the configured time is abandoned with all its calls, and the
next call gets a fresh one. The parent never waits for an abandoned child to die.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from itertools import islice
from types import MappingProxyType
from typing import Any, cast

from onesync.core.blocks import Blocks
from onesync.core.model import Kind, RelPath, parent_of
from onesync.core.trouble import judge
from onesync.errors import LocalError, MountHung, MountNotThere, OnesyncError
from onesync.local import open_source
from onesync.replica.child import READY, receive, send
from onesync.replica.door import Compared, Copied, Identity, Listed, NameRefused, Ours
from onesync.replica.flights import Flight, of_this_thread
from onesync.replica.leased import lease_of_this_thread
from onesync.replica.pace import shared_place
from onesync.replica.turns import Turns

_ENDED = "The process that talks to the mount ended; nothing is lost, the call is made again."
_NOT_BEGUN = "The process that talks to the mount did not begin; nothing is lost, another one will."

_REMEMBERED = 1000
_BEGIN_SECONDS = 30.0
"""So long a child may take to begin, on a machine that has much to do, or as long as a call."""
_END_SECONDS = 5.0
_LEASE_SECONDS = 1.0
"""So often a call that changes something, and lasts, is asked for whether it still may."""
_DESCRIPTORS = 12
"""So many a child may have for each call at once, which holds up to six; a quarter of all holds
directories."""

_SMALL = {"put": 1, "fetch": 0, "look": 0, "unlink": 0}
"""What bursts are made of, a few round trips each, and which argument is the path in OneData."""

_SMALL_BYTES = 1 << 20
_MOST_LARGE = 32
"""Calls for large files at once: the more share a narrow line, the longer none of them advances."""


class _Retired(Exception):
    """The child was let go before a call reached it: another one takes it."""


class _Call:
    def __init__(self, method: str) -> None:
        self.future: Future[Any] = Future()
        self.method = method
        self.advanced = time.monotonic()
        self.flight = of_this_thread()


class _Forgotten:
    """Directories whose descriptors mean something else from here on; told to each child once."""

    def __init__(self) -> None:
        self._newest: deque[RelPath | None] = deque(maxlen=_REMEMBERED)
        self._guard = threading.Lock()
        self.count = 0

    def add(self, *tops: RelPath | None) -> None:
        """Add directories; ``b""`` is all, with their names, and None is ``walk_anew``."""
        with self._guard:
            self._newest.extend(tops)
            self.count += len(tops)

    def since(self, told: int) -> tuple[int, tuple[RelPath | None, ...]]:
        """Return the count and what came after the first ``told``."""
        with self._guard:
            news = self.count - told
            if news > len(self._newest):
                return self.count, (b"",)
            return self.count, tuple(islice(self._newest, len(self._newest) - news, None))


class _Child:
    """One child process and the calls it has not answered yet."""

    def __init__(
        self,
        root: bytes,
        threads: int,
        advanced: Callable[[int], None],
        forgotten: _Forgotten,
        limit: tuple[int, int] | None,
    ) -> None:
        self._advanced = advanced
        self._forgotten = forgotten
        self._told = forgotten.count
        ours, theirs = socket.socketpair()
        self._connection = ours
        self._sending = threading.Lock()
        self._calls: dict[int, _Call] = {}
        self._guard = threading.Lock()
        self._next = 0
        self._begun = threading.Event()
        self.gone: Exception | None = None
        program = [sys.executable, "-m", "onesync.replica.child"]
        places = [] if limit is None else [limit[0]]
        with theirs:
            self._process = subprocess.Popen(
                [*program, str(theirs.fileno()), root, str(threads), *map(str, limit or ())],
                pass_fds=[theirs.fileno(), *places],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                cwd="/",
            )
        threading.Thread(target=self._listen, name="replica-answers", daemon=True).start()

    def busy(self) -> int:
        return len(self._calls)

    def call(
        self, expected: int | None, method: str, arguments: tuple[Any, ...], patience: float
    ) -> Any:
        number, call = self._register(method)
        lease = lease_of_this_thread()
        if not self._begun.is_set():
            self._begin(call, max(patience, _BEGIN_SECONDS), lease)
        try:
            with self._sending:
                self._told, forgotten = self._forgotten.since(self._told)
                send(self._connection, (number, expected, forgotten, method, arguments))
        except OSError as error:
            self.abandon(MountNotThere(f"{_ENDED} ({error})"))
        while True:
            left = max(0.01, call.advanced + patience - time.monotonic())
            try:
                return call.future.result(left if lease is None else min(left, _LEASE_SECONDS))
            except TimeoutError:
                if call.future.done():
                    return call.future.result()  # its own error, perhaps: ETIMEDOUT is one too
                self._end_unless_leased(lease)
                if time.monotonic() - call.advanced >= patience:
                    self.abandon(
                        MountHung(
                            f"The mount did not answer a {method} within {patience:g} s; nothing is"
                            " lost, the call is tried again when the mount answers."
                        )
                    )

    def _begin(self, call: _Call, seconds: float, lease: Callable[[], None] | None) -> None:
        """Wait until the process has begun: that takes this machine's time, not the mount's."""
        if not self._begun.wait(seconds):
            self.abandon(MountNotThere(_NOT_BEGUN))
        self._end_unless_leased(lease)
        call.advanced = time.monotonic()

    def _end_unless_leased(self, lease: Callable[[], None] | None) -> None:
        """End the process where nothing may be written any more: no call ends sooner than that."""
        try:
            if lease is not None:
                lease()
        except OnesyncError as error:
            self.abandon(error)

    def abandon(self, reason: Exception) -> None:
        """Fail every open call with ``reason`` and let the process go without waiting for it."""
        with self._guard:
            if self.gone is None:
                self.gone = reason
            calls, self._calls = list(self._calls.values()), {}
        for call in calls:
            if not call.future.done():
                call.future.set_exception(reason)
        self._begun.set()  # nobody waits for that any more
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        with suppress(ProcessLookupError):
            os.kill(self._process.pid, signal.SIGKILL)

    def retire(self) -> bool:
        """Let the process end unless it has something to do; returns whether it did."""
        with self._guard:
            if self._calls or self.gone is not None:
                return False
            self.gone = _Retired()
        self.abandon(self.gone)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)  # it makes no call on the mount, so nothing holds it
        return True

    def reaped(self) -> bool:
        """Return whether the process has ended; never blocks."""
        return self._process.poll() is not None

    def has_begun(self) -> bool:
        """Return whether the process listens: before that nothing is the mount's silence."""
        return self._begun.is_set()

    def calls(self) -> list[_Call]:
        """Return what it has not answered yet."""
        with self._guard:
            return list(self._calls.values())

    def _register(self, method: str) -> tuple[int, _Call]:
        with self._guard:
            if self.gone is not None:
                raise self.gone
            self._next += 1
            call = self._calls[self._next] = _Call(method)
            return self._next, call

    def _listen(self) -> None:
        while True:
            try:
                answer = receive(self._connection)
            except OSError:
                answer = None
            if answer is None:
                break
            self._take(*answer)
        self.abandon(MountNotThere(_ENDED))
        self._connection.close()

    def _take(self, number: int, good: bool | None, result: Any, moved: int) -> None:
        if number == READY:
            self._begun.set()
            return
        with self._guard:
            call = self._calls.get(number) if good is None else self._calls.pop(number, None)
        if call is None:
            return
        self._advanced(moved)
        if call.flight is not None:
            call.flight.moved += moved
        if good is None:
            call.advanced = time.monotonic()
        elif good:
            call.future.set_result(result)
        else:
            call.future.set_exception(result)


class ChildrenReplica:
    """The replica as the daemon uses it. Safe to call from several threads."""

    def __init__(
        self,
        root: bytes,
        processes: int,
        threads: int,
        patience: float,
        advanced: Callable[[int], None] = lambda _: None,
        bytes_per_second: int | None = None,
        called: Callable[[str, float, Exception | None], None] = lambda *_: None,
    ) -> None:
        """Use up to ``processes`` children of ``threads`` threads; ``patience`` is in seconds.

        ``advanced`` is told whenever a call advances or ends, with the bytes copied since the last
        time; it is called in threads of its own. What all send together keeps to
        ``bytes_per_second``, where that is given. ``called`` is told of each call that ended: its
        name, how many seconds it took, and what it raised; it is called in the caller's thread.
        """
        self._called = called
        self._limit = None if bytes_per_second is None else (shared_place(), bytes_per_second)
        self._advanced = advanced
        self._root = root
        self._processes = processes
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._threads = max(1, min(threads, most // _DESCRIPTORS))
        # What had to wait for another call in the child would seem to hang.
        self._turns = Turns(processes * self._threads)
        self._large = threading.BoundedSemaphore(_MOST_LARGE)
        self._patience = patience
        self._children: list[_Child] = []
        self._abandoned: list[_Child] = []
        self._homes: OrderedDict[tuple[int, int], _Child] = OrderedDict()
        self._guard = threading.Lock()
        self._forgotten = _Forgotten()
        self._identified: Identity | None = None

    @property
    def allowed(self) -> int:
        """How many small calls may be on the mount at once, just now."""
        return self._turns.limit

    def close(self) -> None:
        """Let every child go."""
        with self._guard:
            children, self._children = self._children, []
        for child in children:
            child.abandon(MountNotThere("onesync is stopping"))
        if self._limit is not None:
            os.close(self._limit[0])
            self._limit = None

    def retire(self) -> None:
        """Let go of the children that have nothing to do, for their memory; the next call pays."""
        with self._guard:
            self._children = [c for c in self._children if not c.retire()]

    def under_way(self) -> list[tuple[str, Flight | None]]:
        """Return the calls that are not answered yet, and the files that they are for."""
        with self._guard:
            children = list(self._children)
        return [(call.method, call.flight) for child in children for call in child.calls()]

    def silent_seconds(self) -> float:
        """Return for how long a call that is under way has not advanced; 0 where there is none."""
        with self._guard:
            children = [child for child in self._children if child.has_begun()]
        advanced = [call.advanced for child in children for call in child.calls()]
        return time.monotonic() - min(advanced) if advanced else 0.0

    def warm(self, *, all_of_them: bool = False) -> None:
        """Have a child for the next call, before it comes, or as many as there may be."""
        self._child()
        while all_of_them and len(self._children) < self._processes:
            with self._guard:
                self._children.append(self._begun())

    def _child(self, home: _Child | None = None) -> _Child:
        """Return a child that answers: ``home``, if it has a thread to spare."""
        with self._guard:
            self._abandoned = [c for c in self._abandoned if not c.reaped()]
            self._abandoned += [c for c in self._children if c.gone]
            self._children = [c for c in self._children if not c.gone]
            if home is not None and home in self._children and home.busy() < self._threads:
                return home
            idle = min(self._children, key=_Child.busy, default=None)
            full = len(self._children) >= self._processes
            if idle is not None and (full or not idle.busy()):
                return idle
            child = self._begun()
            self._children.append(child)
            return child

    def _begun(self) -> _Child:
        # One thread more than turns: see _turn.
        threads = self._threads + 1
        return _Child(self._root, threads, self._advanced, self._forgotten, self._limit)

    def _call(self, method: str, *arguments: Any) -> Any:
        return self._ask(None, method, arguments)

    def _call_at_home(self, source: bytes, method: str, *arguments: Any) -> Any:
        """Call the child that was last called for the local file ``source``: it may have read it.

        It is only faster there: any child can begin anew.
        """
        try:
            origin = open_source(source)  # follows no link: one may lead into a mount that hangs
        except OSError:
            return self._call(method, source, *arguments)  # it says what is wrong
        status = os.fstat(origin)
        os.close(origin)
        key = (status.st_dev, status.st_ino)
        with self._guard:
            home = self._homes.pop(key, None)
        child = self._child(home)
        with self._guard:
            self._homes[key] = child
            while len(self._homes) > _REMEMBERED:
                self._homes.popitem(last=False)
        return self._ask(child, method, (source, *arguments))

    def _ask(self, home: _Child | None, method: str, arguments: tuple[Any, ...]) -> Any:
        before = self._identified
        expected = before.mount if before is not None else None
        try:
            while True:
                with suppress(_Retired), self._turn(method, arguments):
                    if (lease := lease_of_this_thread()) is not None:
                        lease()  # it may have waited for its turn
                    return self._timed(self._child(home), expected, method, arguments)
        except LocalError:
            raise
        except OSError as error:
            if judge(error).is_suspicious and not isinstance(error, NameRefused):
                self._forgotten.add(b"")  # the mount may be another one when it answers again
            raise

    def _turn(self, method: str, arguments: tuple[Any, ...]) -> AbstractContextManager[None]:
        if method == "identify":
            return nullcontext()  # it finds out whether the mount hangs: nothing may delay it
        path: RelPath | None = arguments[_SMALL[method]] if method in _SMALL else None
        flight = of_this_thread()
        if flight is not None and flight.size > _SMALL_BYTES:
            return self._turn_of_large(method)
        return self._turns.turn(method, None if path is None else parent_of(path))

    @contextmanager
    def _turn_of_large(self, method: str) -> Iterator[None]:
        with self._large, self._turns.turn(method):
            yield

    def _timed(
        self, child: _Child, expected: int | None, method: str, arguments: tuple[Any, ...]
    ) -> Any:
        began = time.monotonic()
        try:
            result = child.call(expected, method, arguments, self._patience)
        except (OSError, OnesyncError) as error:
            self._called(method, time.monotonic() - began, error)
            raise
        self._called(method, time.monotonic() - began, None)
        return result

    def identify(self) -> Identity:
        found = cast(Identity, self._call("identify"))
        self._forgotten.add(None if found == self._identified else b"")
        self._identified = found
        return found

    def walk_anew(self) -> None:
        self._forgotten.add(None)

    def space(self) -> os.statvfs_result:
        """Return what statfs says of the root."""
        return cast(os.statvfs_result, self._call("space"))

    def probe(self, place: RelPath, name: str) -> object:
        """Make one of ``probes.PROBES`` in the directory ``place``, which is made for it alone.

        After MountHung what it made may still stand there.
        """
        return cast(object, self._call("probe", place, name))

    def look(self, path: RelPath) -> Listed | None:
        return cast("Listed | None", self._call("look", path))

    def look_at(self, paths: Sequence[RelPath]) -> Sequence[Listed | None]:
        return cast("Sequence[Listed | None]", self._call("look_at", paths))

    def list(
        self, path: RelPath, known: Mapping[bytes, Kind] = MappingProxyType({})
    ) -> list[Listed]:
        return cast("list[Listed]", self._call("list", path, dict(known)))

    def names(self, path: RelPath) -> Set[bytes]:
        return cast("Set[bytes]", self._call("names", path))

    def make_directory(self, path: RelPath) -> None:
        self._call("make_directory", path)

    def put(self, source: bytes, temporary: RelPath, seconds: float | None = None) -> Copied:
        if seconds is None:
            return cast(Copied, self._call("put", source, temporary))
        return cast(Copied, self._call_at_home(source, "put", temporary, seconds))

    def fetch(
        self,
        path: RelPath,
        destination: bytes,
        mode: int,
        mtime_ns: int | None,
        goes_on: bool = False,
    ) -> Copied:
        return cast(Copied, self._call("fetch", path, destination, mode, mtime_ns, goes_on))

    def append(
        self, source: bytes, path: RelPath, offset: int, digest: str, seconds: float | None = None
    ) -> Copied | None:
        found = self._call_at_home(source, "append", path, offset, digest, seconds)
        return cast("Copied | None", found)

    def compare(
        self,
        source: bytes,
        length: int,
        blocks: Blocks,
        seconds: float | None = None,
        most: int | None = None,
    ) -> Compared:
        return cast(Compared, self._call_at_home(source, "compare", length, blocks, seconds, most))

    def write_undo(
        self, path: RelPath, undo: RelPath, length: int, blocks: Blocks, numbers: tuple[int, ...]
    ) -> bool:
        return cast(bool, self._call("write_undo", path, undo, length, blocks, numbers))

    def patch(
        self,
        source: bytes,
        path: RelPath,
        blocks: Blocks,
        numbers: tuple[int, ...],
        end: int,
        kept: Mapping[int, bytes] = MappingProxyType({}),
    ) -> bool:
        return cast(bool, self._call("patch", source, path, blocks, numbers, end, dict(kept)))

    def undo(self, path: RelPath, undo: RelPath, length: int) -> bool:
        return cast(bool, self._call("undo", path, undo, length))

    def truncate(self, path: RelPath, length: int) -> None:
        self._call("truncate", path, length)

    def digest(self, path: RelPath) -> tuple[str, int]:
        return cast("tuple[str, int]", self._call("digest", path))

    def arrived(self, paths: Sequence[RelPath]) -> tuple[bool, ...] | None:
        return cast("tuple[bool, ...] | None", self._call("arrived", paths))

    def rename(self, source: RelPath, target: RelPath, *, is_file: bool = False) -> None:
        if is_file:
            self._call("rename_file", source, target)
            return
        try:
            self._call("rename", source, target)
        finally:
            self._forgotten.add(source, target)

    def remove(self, path: RelPath) -> bool:
        was_directory = True  # unless a child says otherwise
        try:
            was_directory = cast(bool, self._call("remove", path))
        finally:
            if was_directory:
                self._forgotten.add(path)
        return was_directory

    def remove_ours(self, path: RelPath, ours: Ours) -> Sequence[RelPath]:
        try:
            return cast("Sequence[RelPath]", self._call("remove_ours", path, ours))
        finally:
            self._forgotten.add(path)

    def unlink(self, path: RelPath) -> Kind | None:
        return cast("Kind | None", self._call("unlink", path))

    def read(self, path: RelPath) -> bytes:
        return cast(bytes, self._call("read", path))

    def write_new(self, path: RelPath, content: bytes) -> None:
        self._call("write_new", path, content)

    def overwrite(self, path: RelPath, content: bytes) -> None:
        self._call("overwrite", path, content)
