"""One life of the daemon, in one process and virtual time: the real engine, index, scanner, lock.

Only the edges are replaced: the clock, the kernel's calls on the mount (``calls``), the kernel's
events (told by comparing what stands there), the workers (who work at once, one after the other)
and the process that copies databases (copied here).
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar
from unittest import mock

import pytest

from onesync import batch, engine, manifest, preparation, push, snapshot, transfer
from onesync.core import blocks
from onesync.core.claims import Remembered, decode_remembered, encode_remembered
from onesync.core.clock import Happening
from onesync.core.trouble import judge
from onesync.engine import Engine
from onesync.errors import Exit, LocalError, MountHung, OnesyncError
from onesync.index import Index
from onesync.lock import Claimant, Lock
from onesync.marks import Marks
from onesync.replica import folder, inplace, pour
from onesync.replica.door import NameRefused
from onesync.replica.folder import FolderReplica
from onesync.replica.names import EscapedNames
from onesync.settings import BatchSettings, GuardSettings, LockSettings, MountSettings, Settings
from onesync.snapshot import Taken
from tests.campaign.calls import Calls, Crash, Fault, Hung
from tests.campaign.virtual import VirtualClock

T = TypeVar("T")

LARGE = 4096
"""From so many bytes on a file is large here, so that a small tree has everything."""

PORTION = 2
"""So many data files a batch brings where portions are small."""

BEGIN = 1000.0


class Place:
    """A node's directories, and the OneData folder as it sees it (``tells``: ``Calls``)."""

    def __init__(self, home: Path, store: Path, boot: str = "first", *, tells: bool = True) -> None:
        self.home = home
        self.store = store
        self.work = home / "work"
        self.state = home / "state"
        self.boot = boot
        self.tells = tells
        for path in (self.work, self.state):
            path.mkdir(parents=True, exist_ok=True)

    @classmethod
    def make(cls, home: Path) -> Self:
        """Make a node below ``home``, with an empty folder beside it."""
        store = home / "store"
        store.mkdir()
        return cls(home / "node", store)

    def settings(self) -> Settings:
        return Settings(
            working_dir=self.work,
            onedata_dir=self.store,
            state_dir=self.state,
            runtime_dir=self.home,
            mount=MountSettings(require_fuse=False, io_timeout_seconds=30),
            batch=BatchSettings(),
            # The story empties the working copy also while nobody watches, and means it.
            guards=GuardSettings(unexplained_percent=100),
            lock=LockSettings(settle_seconds=0),
        )

    def claimant(self) -> Claimant:
        name = self.home.name
        return Claimant(name, self.boot, name, "me", str(self.work), str(self.store), "0")


class Inline:
    """Workers who work at once (``concurrent.futures.Executor``)."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def submit(self, act: Callable[..., T], *arguments: Any) -> Future[T]:
        future: Future[T] = Future()
        try:
            future.set_result(act(*arguments))
        except Exception as error:  # noqa: BLE001 - as an executor does
            future.set_exception(error)
        return future

    def map(self, act: Callable[..., T], *columns: Any) -> Iterator[T]:
        futures = [self.submit(act, *row) for row in zip(*columns, strict=False)]
        return (future.result() for future in futures)


class Direct:
    """A replica without a process of its own; abandons what hangs, as ``ChildrenReplica`` does."""

    def __init__(self, root: bytes, calls: Calls) -> None:
        self._replica = EscapedNames(FolderReplica(root))
        self._calls = calls

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._replica, name)

        def call(*arguments: Any, **options: Any) -> Any:
            try:
                return method(*arguments, **options)
            except Hung:
                self._calls.hung = False
                self._replica.forget()
                raise MountHung("The mount did not answer.") from None
            except (LocalError, NameRefused):
                raise
            except OSError as error:
                if judge(error).is_suspicious:
                    self._replica.forget()
                # What the errno says is all that crosses a process' border.
                raise OSError(error.errno, error.strerror, error.filename) from None

        return call


class InlineSnapshots:
    """Copies databases in this process: nobody else writes them meanwhile."""

    def take(self, pairs: Sequence[tuple[bytes, bytes]], _: float) -> list[Taken]:
        return [snapshot._take_one(*pair) for pair in pairs]


@dataclass(frozen=True)
class _Seen:
    """What the kernel's events would tell the difference of."""

    inode: int
    is_directory: bool
    rest: tuple[int, ...]


class Told:
    """A watcher that compares the working copy with what it was (``watcher.Watcher``)."""

    def __init__(self, root: bytes, _: bytes, marks: Marks) -> None:
        self._root = root
        self._marks = marks
        self._seen: dict[bytes, _Seen] = {}
        self.deaf = False

    def start(self) -> None:
        self._seen = self._look()

    def stop(self) -> None: ...

    def watches(self) -> int:
        return 0

    def polled(self) -> int:
        return 0

    def drain(self, _: float) -> bool:
        self.tell()
        return True

    def overflow(self) -> None:
        """Drop what there is to tell, and say so."""
        self._seen = self._look()
        self._marks.overflowed()

    def tell(self) -> None:
        """Mark what changed since the last time."""
        old, new = self._seen, self._look()
        self._seen = new
        gone = {seen.inode: path for path, seen in old.items() if path not in new}
        moved: set[bytes] = set()
        for path in sorted(new):
            above = os.path.dirname(path)
            is_another = path not in old or old[path].inode != new[path].inode
            source = gone.get(new[path].inode) if is_another else None
            if source is not None and above not in moved:
                self._marks.moved(source, path)
            if source is not None and new[path].is_directory:
                moved.add(path)
            if old.get(path) == new[path] or source is not None:
                continue
            if is_another and new[path].is_directory:
                self._marks.tree_changed(path)
            else:
                self._marks.changed(path)
        for path in old.keys() - new.keys():
            self._marks.deleted(path)

    def _look(self) -> dict[bytes, _Seen]:
        found: dict[bytes, _Seen] = {}
        directories = [b""]
        for above in directories:
            with os.scandir(os.path.join(self._root, above)) as inner:
                for one in inner:
                    path = os.path.join(above, one.name)
                    found[path] = _seen(one)
                    if found[path].is_directory:
                        directories.append(path)
        return found


def _seen(one: os.DirEntry[bytes]) -> _Seen:
    status = one.stat(follow_symlinks=False)
    rest = (status.st_mode, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return _Seen(status.st_ino, one.is_dir(follow_symlinks=False), rest)


class CrashingIndex(Index):
    """An index whose commits are numbered; the process dies just before or after one of them."""

    def __init__(self, path: Path, life: Life) -> None:
        self._life = life
        super().__init__(path)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with super()._transaction():
            yield
            self._life.boundary()
        self._life.boundary()


def bring_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let data come in many batches, which look at few of those that are left."""
    monkeypatch.setattr(push, "_PORTION_FILES", PORTION)
    monkeypatch.setattr(batch, "_LOOKED_AT_ONCE", PORTION + 1)


Step = Callable[["Life"], None]


@dataclass
class Life:
    """What happens in one life, and what became of it.

    Attributes:
        place: the node.
        steps: done one after the other, each when the engine has nothing to do.
        fault: what goes wrong.
        dies_at: the local boundary at which the process dies: before or after a durable write of
            the state directory.
        patience: after so many failures in a row the next step comes all the same.
        stops: whether it is undeployed after the last step; else it is left to die there.
        end: the exit code, an error's or None where it died.
        boundaries: how many local boundaries there were.
        sent: names of the checkpoints that stand, in order.
        told_commit: called with each of them.
        failed_as: what the engine said of each batch that failed.
        succeeded_after: how many of its calls had failed, each time that it told a success; none
            where the last failure left nothing that was due, but something to be tidied.
    """

    place: Place
    steps: Sequence[Step] = ()
    fault: Fault | None = None
    dies_at: int = 0
    patience: int = 3
    stops: bool = True
    end: Exit | None = None
    error: str = ""
    boundaries: int = 0
    done: int = 0
    failures: int = 0
    sent: list[str] = field(default_factory=list)
    phases: list[str] = field(default_factory=list)
    failed_as: list[str] = field(default_factory=list)
    succeeded_after: list[int] = field(default_factory=list)
    owes: bool = True
    told_commit: Callable[[], None] = lambda: None

    def live(self) -> Life:
        """Live it; everything in memory is gone afterwards."""
        store = os.fsencode(self.place.store)
        self.calls = Calls(store, self.fault, tells=self.place.tells)
        self.clock = VirtualClock(BEGIN, self._waits)
        index: Index | None = None
        with edges(), self.calls.installed():
            try:
                index = CrashingIndex(self.place.state / "index.sqlite", self)
                self.engine = self._engine(index)
                self.end = self.engine.live()
            except OnesyncError as error:
                self.end, self.error = error.code, str(error)
            except Crash:
                self.end = None
            finally:
                self.clock.end()
                self._end_tidying()
                if index is not None:
                    index.close()
        return self

    def _end_tidying(self) -> None:
        """Let the call that is on its way beside the batches land before anybody looks."""
        batches = self.engine._batches if hasattr(self, "engine") else None
        if batches is not None:
            batches.tidying.shut_down()

    @property
    def died(self) -> bool:
        return self.end is None

    def boundary(self) -> None:
        """Something durable was written on the node, or is about to be."""
        self.boundaries += 1
        if self.boundaries == self.dies_at:
            self.calls.die()

    @property
    def watcher(self) -> Told:
        found = self.engine._watcher
        assert isinstance(found, Told)
        return found

    def _engine(self, index: Index) -> Engine:
        place = self.place
        root = os.fsencode(place.store)
        settings = place.settings()
        claim = place.state / "claim.json"
        remembered = decode_remembered(claim.read_text()) if claim.exists() else None
        lock = Lock(
            Direct(root, self.calls),
            self.clock,
            settings.lock_times(),
            place.claimant(),
            remembered,
            self._remember,
        )
        replica = Direct(root, self.calls)
        return Engine(settings, self.clock, index, replica, lock, lambda: False, self)

    def _remember(self, remembered: Remembered) -> None:
        self.boundary()
        temporary = self.place.state / "claim.new"
        temporary.write_text(encode_remembered(remembered))
        temporary.replace(self.place.state / "claim.json")
        self.boundary()

    def _waits(self, event: Happening, _: float) -> None:
        """The engine waits: for work, then the next step comes; or to try again."""
        if self.calls.dead:
            raise Crash
        if event is self.engine.marks.arrived:
            self.failures = 0
            self.watcher.tell()
            if not event.is_set() and len(self.engine.marks) == 0:
                self._next()
        elif self.engine.phase in ("backing_off", "suspended"):
            self.failures += 1
            if self.failures % self.patience == 0:
                self._next()

    def _next(self) -> None:
        if self.done < len(self.steps):
            self.done += 1
            self.steps[self.done - 1](self)
            self.watcher.tell()
        elif self.stops:
            self.engine.stop()
        else:
            self.calls.die()

    # -- told by the engine (``engine.Observer``) -------------------------------------------------

    def phase_changed(self, phase: str) -> None:
        self.phases.append(phase)

    def committed(self, name: str, _: float) -> None:
        self.sent.append(name)
        self.told_commit()

    def pushed(self, files: int, size: int) -> None: ...

    def synced(self, seconds: float, waited: Sequence[float]) -> None: ...

    def succeeded(self) -> None:
        self.succeeded_after.append(self.calls.struck_here if self.owes else 0)

    def failed(self, kind: str) -> None:
        self.failed_as.append(kind)
        self.owes = self.engine.marks.next_due() == 0

    def differed(self, files: int) -> None: ...

    def rescanned(self, reason: str) -> None: ...

    def advanced(self, done: int, total: int) -> None: ...

    def alive(self) -> None: ...


def _dies_quietly(what: threading.ExceptHookArgs) -> None:
    """The beat's thread dies with its process; anything else that ends it is an error."""
    if not isinstance(what.exc_value, Crash):
        threading.__excepthook__(what)


@contextmanager
def edges() -> Iterator[None]:
    """Replace what lies between the engine and the machine, but for the calls on the mount."""
    replaced: list[tuple[Any, str, object]] = [
        (engine, "ThreadPoolExecutor", Inline),
        (engine, "choose_watcher", Told),
        (folder, "PATCH_FROM", LARGE),
        (pour, "CHUNK", LARGE // 2),
        (pour, "_LONG", LARGE),
        (pour._Aside, "__enter__", lambda aside: aside),  # without a thread: one order alone
        (inplace, "_CHUNK", LARGE // 2),
        (transfer, "PATCH_FROM", LARGE),
        (blocks, "_SIZES", ((0, LARGE // 4),)),
        (preparation, "CREATED_AT_MOST", LARGE // 2),
        (push, "CREATED_AT_MOST", LARGE // 2),
        (manifest, "_COMPACT_AT_LEAST", 600),
    ]
    with ExitStack() as stack:
        for where, name, value in replaced:
            stack.enter_context(mock.patch.object(where, name, value))
        stack.enter_context(mock.patch.object(snapshot.Snapshots, "take", InlineSnapshots.take))
        stack.enter_context(mock.patch.object(threading, "excepthook", _dies_quietly))
        yield


def copied(source: Path, target: Path) -> Path:
    """Return ``target``, a copy of the directory ``source``."""
    return Path(shutil.copytree(source, target, symlinks=True))
