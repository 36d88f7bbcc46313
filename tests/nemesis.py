"""A world in which several nodes contend for one folder, in virtual time and by a seed.

The nodes run the real lock, manifest and search for the head, as threads of which one runs at a
time. Their calls on the store take time, fail before or after they took effect, take effect late,
never leave, come in part, and those of heartbeats ten times as often; their listings are stale;
they are configured with different times of the lock and paused for longer than all of them, die at
any call, come back after a reboot or as a clone of another's disk, and a person unlocks what looks
dead. What is judged is written at ``History``.
"""

from __future__ import annotations

import errno
import heapq
import random
import threading
from collections import Counter
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, cast

from onesync.core.chain import Head, Set, decode
from onesync.core.claims import LockTimes, Remembered, epoch_of, parse_lock
from onesync.core.clock import Happening
from onesync.core.model import Entry, Kind, join
from onesync.errors import LockLost, OnesyncError, Suspended
from onesync.lock import LOCK, Claimant, Lock
from onesync.manifest import MANIFEST, Manifest, read_head
from onesync.replica.door import Replica
from onesync.replica.leased import leased
from tests.memory import MemoryReplica

N = 10.0
TIMES = tuple(LockTimes.from_timeout(n * N) for n in (1, 2, 3))
"""Nodes are configured differently; the person who unlocks always has the shortest.

Where locks are deleted by hand all have these: what is judged there, that forks are told of,
depends on how long an owner may write that does not know of it yet.
"""
_BEAT = b"/beat-"
UNJUDGED = "unjudged to the end"
"""Histories in which a call in flight removed a successor's lock: from then on two may write."""
_CHANGES = ("write_new", "overwrite", "make_directory", "remove", "rename")


def _is_beat(name: str, arguments: tuple[Any, ...]) -> bool:
    return name == "write_new" and _BEAT in arguments[0]


class Dies(BaseException):
    """The process is killed where it stands."""


class World:
    """The time, and whose turn it is: a heap of moments at which something goes on."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self.counts: Counter[str] = Counter()
        self._moments: list[tuple[float, int, Task | Callable[[], None]]] = []
        self._number = 0
        self._done = threading.Semaphore(0)

    def at(self, moment: float, what: Task | Callable[[], None]) -> None:
        self._number += 1
        heapq.heappush(self._moments, (moment, self._number, what))

    def run(self) -> None:
        """Go on until no task is left."""
        if (first := self._next()) is not None:
            first.turn.release()
            self._done.acquire()

    def give_up_turn(self) -> Task | None:
        """Let the next one go on; returns it."""
        following = self._next()
        if following is None:
            self._done.release()
        return following

    def _next(self) -> Task | None:
        while self._moments:
            moment, _, what = heapq.heappop(self._moments)
            self.now = max(self.now, moment)
            if not isinstance(what, Task):
                what()
            elif what.node.paused_until > self.now and not what.node.over():
                self.at(what.node.paused_until, what)
            else:
                return what
        return None


class Task:
    """Something that a node does; it runs when it has its turn."""

    def __init__(self, node: Node, act: Callable[[], None]) -> None:
        self.turn = threading.Semaphore(0)
        self.node = node
        self.life = node.life
        self._act = act
        self._world = node.world
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._world.at(self._world.now, self)

    def wait(self, seconds: float) -> None:
        """Let the others go on for so long. Raises Dies when the node died meanwhile."""
        self._world.at(self._world.now + seconds, self)
        following = self._world.give_up_turn()
        if following is not self and following is not None:
            following.turn.release()
            self.turn.acquire()
        if self.life != self.node.life or self.node.over():
            raise Dies

    def _run(self) -> None:
        self.turn.acquire()
        _current.task = self
        try:
            if self.life == self.node.life and not self.node.over():
                self._act()
        except Dies:
            pass
        except BaseException as error:  # noqa: BLE001 - raised again by the test
            self.node.history.broken.append(error)
        finally:
            if (following := self._world.give_up_turn()) is not None:
                following.turn.release()


class _Current(threading.local):
    task: Task


_current = _Current()


@dataclass(slots=True)
class NodeClock:
    """A clock that runs a little wrong, and a wall clock that is set at will."""

    world: World
    rate: float

    def boottime(self) -> float:
        return 5000 + self.world.now * self.rate

    def wall_ns(self) -> int:
        return int((1_700_000_000 + self.world.random.randint(-(10**6), 10**6)) * 1e9)

    def sleep(self, seconds: float) -> None:
        _current.task.wait(max(0.0, seconds) / self.rate)

    def wait(self, event: Happening, seconds: float) -> bool:
        self.sleep(seconds)
        return event.is_set()


class Seat:
    """One node's door to the store."""

    def __init__(self, node: Node, store: MemoryReplica) -> None:
        self._node = node
        self._store = store
        self._seen: dict[bytes, tuple[float, bytes]] = {}

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def made(*arguments: Any) -> Any:
            return self._call(name, arguments)

        return made

    def _call(self, name: str, arguments: tuple[Any, ...]) -> Any:
        node, dice = self._node, self._node.world.random
        self._take_time(dice)
        if node.vanishing_until > node.world.now and name in ("write_new", "overwrite"):
            node.world.counts["never left"] += 1
            return None
        if node.muted_until > node.world.now:
            _current.task.wait(N * 0.9)
            raise OSError(errno.ETIMEDOUT, "no answer", name)
        if _is_beat(name, arguments) and dice.random() < node.history.beat_mishaps:
            return self._beat_mishap(arguments, dice)
        if dice.random() < node.history.mishaps:
            return self._mishap(name, arguments, dice)
        if name == "names":
            return self._names(arguments[0], dice)
        if name == "read" and arguments == (LOCK,):
            return self._read_by_cache(dice)
        answer = self._land(name, arguments)
        if dice.random() < 0.1:
            self._take_time(dice)
        return answer

    def _take_time(self, dice: random.Random) -> None:
        if dice.random() < 0.6:
            return
        if dice.random() < 0.02:
            self._node.pause()
        _current.task.wait(dice.choice((0.001, 0.01, 0.1, 1.0, N * 0.4)))

    def _names(self, path: bytes, dice: random.Random) -> AbstractSet[bytes]:
        """A listing, perhaps of a while ago: what others made since is not in it."""
        found = self._store.names(path)
        if dice.random() < 0.5:
            return found
        when = self._node.world.now - dice.choice((1, 5, 20)) * N
        hidden = self._node.history.hidden(self._node, when)
        shown = frozenset(name for name in found if join(path, name) not in hidden)
        self._node.world.counts["stale listings"] += len(shown) < len(found)
        return shown

    def _read_by_cache(self, dice: random.Random) -> bytes:
        """The content of a file that is written in place, perhaps of a moment ago."""
        now = self._node.world.now
        when, old = self._seen.get(LOCK, (-1e9, b""))
        if now - when < 2 * N and dice.random() < 0.3:
            self._node.world.counts["stale contents"] += 1
            return old
        found = self._store.read(LOCK)
        self._seen[LOCK] = (now, found)
        return found

    def _mishap(self, name: str, arguments: tuple[Any, ...], dice: random.Random) -> Any:
        counts = self._node.world.counts
        kind = dice.choice(("refused", "unknown", "late", "never left", "torn", "died"))
        if kind == "died":
            counts["deaths"] += 1
            self._node.die()
            raise Dies
        if kind == "never left" and name in ("write_new", "overwrite"):
            counts["never left"] += 1
            return None
        if kind == "torn" and name == "write_new":
            counts["torn"] += 1
            path, content = arguments
            with suppress(OSError):
                self._store.write_new(path, content[: dice.randrange(len(content))])
        elif kind == "unknown" and name in _CHANGES:
            counts["unknown"] += 1
            with suppress(OSError):
                self._land(name, arguments)
        elif kind == "late" and name in _CHANGES:
            counts["late"] += 1
            late = self._node.world.now + dice.random() * N
            self._node.world.at(late, lambda: self._land_late(name, arguments))
        else:
            counts["refused"] += 1
        raise OSError(errno.EIO, kind, name)

    def _beat_mishap(self, arguments: tuple[Any, ...], dice: random.Random) -> None:
        """What befalls a heartbeat alone, while everything else may go well."""
        kind = dice.choice(("delayed", "never left", "failed", "torn"))
        self._node.world.counts[f"beats {kind}"] += 1
        path, content = arguments
        if kind == "torn":
            self._land_late("write_new", (path, content[: dice.randrange(len(content))]))
        elif kind == "delayed":
            late = self._node.world.now + dice.random() * 10 * N
            self._node.world.at(late, lambda: self._land_late("write_new", arguments))
        if kind == "failed" or (kind != "never left" and dice.random() < 0.5):
            raise OSError(errno.EIO, kind, path)

    def _land_late(self, name: str, arguments: tuple[Any, ...]) -> None:
        with suppress(OSError):
            self._land(name, arguments)

    def _land(self, name: str, arguments: tuple[Any, ...]) -> Any:
        """Let a call take effect."""
        history = self._node.history
        if name == "remove" and arguments == (LOCK,):
            history.removes(self._node)
        answer = getattr(self._store, name)(*arguments)
        if name in ("write_new", "make_directory"):
            history.born[arguments[0]] = (self._node.world.now, self._node)
        return answer


@dataclass(slots=True)
class Life:
    """One process of a node that has the lock, or had it."""

    node: Node
    lock: Lock
    lost: LockLost | None = None

    def holds(self) -> bool:
        return self.lost is None and self.lock.is_held() and self.lock.may_write()

    def may_write(self) -> None:
        if self.lost is not None:
            raise self.lost
        if not self.lock.may_write():
            raise Suspended("suspended")
        self.node.history.is_alone(self)


class Node:
    """A machine: its disk remembers the claim, its processes come and go."""

    def __init__(self, history: History, name: str) -> None:
        self.history = history
        self.world = history.world
        self.name = name
        self.life = 0
        self.boot = 0
        self.paused_until = 0.0
        self.muted_until = 0.0
        self.vanishing_until = 0.0
        self.remembered: Remembered | None = None
        self.current: Life | None = None
        self.newest: str | None = None
        self.clock = NodeClock(self.world, self.world.random.uniform(0.95, 1.05))
        self.seat = cast(Replica, Seat(self, history.store))

    def over(self) -> bool:
        return self.world.now >= self.history.seconds

    def pause(self) -> None:
        """Nothing here runs for a while: a suspended machine, a stopped process."""
        self.world.counts["paused"] += 1
        self.paused_until = self.world.now + self.world.random.choice((2, 7, 9, 11, 15, 40)) * N

    def die(self) -> None:
        """Whatever runs ends where it is; the next life begins, perhaps after a reboot."""
        self.life += 1
        self.current = None
        if self.world.random.random() < 0.5:
            self.boot += 1
        self.start(self.world.random.random() * 4 * N)

    def become(self, original: Node) -> None:
        """Start anew with a copy of another's disk."""
        self.world.counts["clones"] += 1
        self.remembered = original.remembered
        self.boot += 1
        self.die()

    def start(self, after: float) -> None:
        """Begin a life after a while."""
        life = self.life

        def begin() -> None:
            if life == self.life and not self.over():
                Task(self, self._live)

        self.world.at(self.world.now + after, begin)

    def _live(self) -> None:
        while True:
            with suppress(OnesyncError, OSError):
                self._deploy()
            self.current = None
            self.clock.sleep(self.world.random.random() * 6 * N)

    def _deploy(self) -> None:
        claimant = Claimant(self.name, f"{self.name}-{self.boot}", "m", "u", "/w", "/r", "0")
        times = TIMES[0] if self.history.careless else self.world.random.choice(TIMES)
        lock = Lock(self.seat, self.clock, times, claimant, self.remembered, self._remember)
        epoch = lock.acquire()
        life = self.current = Life(self, lock)
        self.world.counts["claims"] += 1
        door = leased(self.seat, life.may_write)
        with suppress(FileExistsError):
            door.make_directory(MANIFEST)
        Task(self, lambda: self._beat(life))
        before = set(self.history.committed)
        head = read_head(door, "folder")
        self.history.saw(head, before)
        self.newest = head.name if head else None
        manifest = Manifest(door, self.clock, "folder", head, epoch, "w", (), life.may_write)
        self._commit(life, manifest, whole=head is None or bool(head.ignored))
        lock.release(manifest.head[0] if manifest.head else None)
        self.world.counts["releases"] += 1

    def _remember(self, remembered: Remembered) -> None:
        self.remembered = remembered

    def _commit(self, life: Life, manifest: Manifest, whole: bool) -> None:
        """Write checkpoints for a while, as batches do."""
        unknown = False
        left = self.world.random.randint(1, 60)
        while left or unknown:
            try:
                life.may_write()
                if unknown and (found := manifest.unfinished()) is not None:
                    self._committed(found[1].name)
                unknown = True
                why = "base" if whole else "incremental"
                entry = Entry(Kind.FILE, 1, 1, 0o644, "ab" * 32)
                change = Set(
                    b"%s-%d" % (self.name.encode(), self.world.random.getrandbits(40)), entry
                )
                self._committed(manifest.write([change], why).name)
                unknown, whole, left = False, False, max(0, left - 1)
            except Suspended:
                self.world.counts["suspended"] += 1
            except OSError:
                pass
            self.clock.sleep(self.world.random.choice((0.1, 1.0, N, 4 * N)))

    def _committed(self, name: str) -> None:
        self.newest = name
        self.history.commit(name)

    def _beat(self, life: Life) -> None:
        """What ``heartbeat.Heartbeat`` does in its thread."""
        while self.current is life:
            self.clock.sleep(life.lock.times.beat)
            if self.current is not life:
                return
            try:
                life.lock.beat(self.newest)
            except LockLost as error:
                self.world.counts["fenced"] += 1
                life.lost = error
                return
            except OSError:
                continue


@dataclass(slots=True)
class History:
    """One run of the world, and what must hold in it.

    At every write that the lock permits nobody else is permitted to write. Whatever was committed
    is on the chain that a reader finds later, also by stale listings, and on the one of the end.
    """

    seed: int
    seconds: float = 160 * N
    mishaps: float = 0.01
    beat_mishaps: float = 0.1
    contenders: int = 3
    careless: bool = False
    world: World = field(init=False)
    store: MemoryReplica = field(init=False)
    nodes: list[Node] = field(init=False)
    committed: list[str] = field(default_factory=list)
    told: set[str] = field(default_factory=set)
    born: dict[bytes, tuple[float, Node]] = field(default_factory=dict)
    broken: list[BaseException] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.world = World(self.seed)
        self.store = MemoryReplica()
        self.nodes = [Node(self, f"node{number}") for number in range(self.contenders)]

    def run(self) -> None:
        """Live it; afterwards ``broken`` is empty or tells what was wrong."""
        for node in self.nodes:
            node.start(self.world.random.random() * 3 * N)
        person = Node(self, "person")
        Task(person, lambda: self._person(person))
        fate = Node(self, "fate")
        Task(fate, lambda: self._fate(fate))
        self.world.run()
        head = read_head(cast(Replica, self.store), "folder") if self.committed else None
        self.saw(head, set(self.committed))

    def commit(self, name: str) -> None:
        """A node was told that its checkpoint stands."""
        self.world.counts["commits"] += 1
        self.committed.append(name)

    def is_alone(self, life: Life) -> None:
        """Nobody else may write when ``life`` may."""
        self.world.counts["permitted writes"] += 1
        for node in self.nodes:
            other = node.current
            if other is not None and other is not life and other.holds() and not self.careless:
                epochs = sorted(held.lock.state().epoch for held in (life, other))
                self.broken.append(AssertionError(f"at {self.world.now}: both {epochs} may write"))

    def saw(self, head: Head | None, committed: set[str]) -> None:
        """A reader found ``head``: all that was ``committed`` before must be on its chain.

        Where a lock was deleted under a live owner, what is not must have been told of.
        """
        chain = self._chain(head.name if head else None)
        missing = committed - chain
        if self.careless and head is not None:
            self.world.counts["forks told of"] += len(missing & self.told)
            missing -= self.told | {name for name in missing if name in " ".join(head.ignored)}
        if head is not None:
            self.told |= {name for name in committed - chain if name in " ".join(head.ignored)}
        if missing:
            self.broken.append(
                AssertionError(f"{head.name if head else head} does not continue {sorted(missing)}")
            )

    def hidden(self, node: Node, when: float) -> set[bytes]:
        """Return the paths that others than ``node`` made later than ``when``."""
        return {p for p, (born, by) in self.born.items() if born > when and by is not node}

    def removes(self, node: Node) -> None:
        """A call of ``node`` removes the lock file: as admitted, also that of its successor."""
        with suppress(FileNotFoundError):
            named = epoch_of(parse_lock(self.store.read(LOCK)))
            life = node.current
            mine = life.lock.state().epoch if life and life.lock.is_held() else named
            if named != mine:
                self.world.counts["locks removed in flight"] += 1
                self.world.counts[UNJUDGED] += not self.careless
                self.careless = True

    def _chain(self, name: str | None) -> set[str]:
        found = set()
        while name is not None:
            found.add(name)
            previous = decode(self.store.read(join(MANIFEST, name.encode()))).header.previous
            name = previous[0] if previous is not None else None
        return found

    def _fate(self, fate: Node) -> None:
        """Something befalls the owner, and then, often, a clone of it starts elsewhere."""
        dice = self.world.random
        while True:
            fate.clock.sleep(dice.uniform(5, 30) * N)
            owners = [node for node in self.nodes if node.current is not None]
            if not owners:
                continue
            owner = dice.choice(owners)
            until = self.world.now + dice.uniform(2, 16) * N
            what = dice.choice(("paused", "muted", "vanishing"))
            setattr(owner, f"{what}_until", until)
            self.world.counts[what] += 1
            if dice.random() < 0.6:
                other = dice.choice([node for node in self.nodes if node is not owner])
                other.become(owner)

    def _person(self, person: Node) -> None:
        """Unlocks what seems dead, now and then; a careless one deletes the lock file."""
        while True:
            person.clock.sleep(self.world.random.random() * 40 * N)
            with suppress(OnesyncError, OSError):
                if self.careless:
                    self.store.remove(LOCK)
                    self.world.counts["locks deleted"] += 1
                    continue
                claimant = Claimant("person", "b", "m", "u", "/w", "/r", "0")
                lock = Lock(person.seat, person.clock, TIMES[0], claimant, None)
                open_epochs = [claim.epoch for claim in lock._claims() if claim.ended is None]
                if open_epochs:
                    lock.unlock(open_epochs[0])
                    self.world.counts["unlocked"] += 1
