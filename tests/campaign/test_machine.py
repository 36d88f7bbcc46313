"""The whole engine against a model: whatever happens in whatever order, every state is a state.

The rules write a program: edits, troubles and deaths, one step after the other; ``lives`` carries
it out, in as many lives as it takes. The model is the list of pictures of the working copy.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from sqlite3 import connect

import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from onesync.core.chain import parse_name
from onesync.errors import Exit
from tests.campaign.calls import Fault
from tests.campaign.counts import count
from tests.campaign.life import LARGE, Life, Place, Step, copied
from tests.campaign.story import Picture, leftovers
from tests.campaign.trial import differ, unlock
from tests.node import picture

RUN = "Runs/000001_Import"
FILES = ["notes", "data/a.mrc", "data/deep/b.mrc", f"{RUN}/extra/c.mrc", f"{RUN}/extra/d.mrc"]
DIRECTORIES = ["data", "data/deep", f"{RUN}/extra", "empty", "other"]
LINKS = ["link", "data/link"]
ALL = FILES + DIRECTORIES + LINKS
DATABASE = f"{RUN}/set.sqlite"
SOME_CALLS = st.integers(1, 80)
SEED = int(os.environ.get("ONESYNC_SEED", "20260104"))
MANY = int(os.environ.get("ONESYNC_DEPLOYMENTS", "1000"))
CHUNKS = 8


def clear_way(path: Path) -> None:
    """Make room for something else at ``path``."""
    for above in reversed(path.parents):
        if above.is_symlink() or above.is_file():
            above.unlink()
    path.parent.mkdir(parents=True, exist_ok=True)
    remove(path)


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        with suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()


class Deployments(RuleBasedStateMachine):
    """One folder, deployed here and there."""

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp(prefix="onesync-machine-", dir="/dev/shm"))
        self.store = self.home / "store"
        self.store.mkdir()
        self.nodes = [Place(self.home / name, self.store) for name in ("one", "two")]
        self.here = 0
        self.program: list[Step] = []
        self.states: list[Picture] = [{}]
        self.committed = [0]
        self.lived = 0

    def teardown(self) -> None:
        try:
            self._undeploy()
        finally:
            shutil.rmtree(self.home)

    # -- the program ----------------------------------------------------------------------------

    def _edits(self, act: Callable[[Path], object]) -> None:
        def step(life: Life) -> None:
            act(life.place.work)
            self.states.append(picture(life.place.work))
            count("states explored", 1)

        self.program.append(step)

    @rule(path=st.sampled_from(FILES), size=st.sampled_from([0, 3, 700, LARGE, 3 * LARGE]))
    def write(self, path: str, size: int) -> None:
        number = len(self.program)

        def act(work: Path) -> None:
            clear_way(work / path)
            (work / path).write_bytes(bytes((number + n) % 251 for n in range(size)))

        self._edits(act)

    @rule(path=st.sampled_from(FILES), size=st.sampled_from([1, 700, LARGE]))
    def append(self, path: str, size: int) -> None:
        def act(work: Path) -> None:
            if (work / path).is_file():
                with (work / path).open("ab") as file:
                    file.write(b"+" * size)

        self._edits(act)

    @rule(path=st.sampled_from(FILES), offset=st.integers(0, 2 * LARGE))
    def patch(self, path: str, offset: int) -> None:
        def act(work: Path) -> None:
            if (work / path).is_file() and (work / path).stat().st_size > offset:
                with (work / path).open("r+b") as file:
                    file.seek(offset)
                    file.write(b"!")

        self._edits(act)

    @rule(source=st.sampled_from(ALL), goal=st.sampled_from(ALL))
    def rename(self, source: str, goal: str) -> None:
        def act(work: Path) -> None:
            inside = f"{goal}/".startswith(f"{source}/") or f"{source}/".startswith(f"{goal}/")
            if os.path.lexists(work / source) and not inside:
                clear_way(work / goal)
                if os.path.lexists(work / source):
                    (work / source).rename(work / goal)

        self._edits(act)

    @rule(path=st.sampled_from(ALL))
    def delete(self, path: str) -> None:
        self._edits(lambda work: remove(work / path))

    @rule(path=st.sampled_from(DIRECTORIES))
    def make_directory(self, path: str) -> None:
        def act(work: Path) -> None:
            if not (work / path).is_dir() or (work / path).is_symlink():
                clear_way(work / path)
                (work / path).mkdir()

        self._edits(act)

    @rule(path=st.sampled_from(LINKS), goal=st.sampled_from(["notes", "data", "/nowhere"]))
    def link(self, path: str, goal: str) -> None:
        def act(work: Path) -> None:
            clear_way(work / path)
            (work / path).symlink_to(goal)

        self._edits(act)

    @rule(source=st.sampled_from(FILES), goal=st.sampled_from(FILES))
    def hard_link(self, source: str, goal: str) -> None:
        def act(work: Path) -> None:
            if source != goal and (work / source).is_file():
                clear_way(work / goal)
                if (work / source).is_file():
                    (work / goal).hardlink_to(work / source)

        self._edits(act)

    @rule(path=st.sampled_from(FILES + DIRECTORIES), mode=st.sampled_from([0o600, 0o755, 0o700]))
    def change_mode(self, path: str, mode: int) -> None:
        def act(work: Path) -> None:
            if not (work / path).is_symlink() and (work / path).exists():
                (work / path).chmod(mode)

        self._edits(act)

    @rule()
    def insert(self) -> None:
        def act(work: Path) -> None:
            if not (work / DATABASE).is_file():
                clear_way(work / DATABASE)
            with closing(connect(work / DATABASE)) as database:
                database.execute("create table if not exists item (number integer)")
                database.execute("insert into item values (1)")
                database.commit()

        self._edits(act)

    # -- troubles -------------------------------------------------------------------------------

    def _happens(self, fault: Fault) -> None:
        def step(life: Life) -> None:
            number = life.calls.number + fault.number
            life.calls.fault = Fault(
                number, fault.what, fault.lasting, fault.applied, fault.loses, fault.only
            )

        self.program.append(step)

    @rule(calls=SOME_CALLS, loses=st.sampled_from(["", "zeros", "old"]))
    def dies(self, calls: int, loses: str) -> None:
        self._happens(Fault(calls, "crash", loses=loses))

    @rule(calls=SOME_CALLS, what=st.sampled_from(["ENOTCONN", "EIO"]))
    def mount_goes(self, calls: int, what: str) -> None:
        self._happens(Fault(calls, what, lasting=True))

    @rule(calls=SOME_CALLS, applied=st.booleans(), what=st.sampled_from(["ETIMEDOUT", "EIO"]))
    def fails_once(self, calls: int, applied: bool, what: str) -> None:
        self._happens(Fault(calls, what, applied=applied))

    @rule(calls=SOME_CALLS, lasting=st.booleans())
    def hangs(self, calls: int, lasting: bool) -> None:
        self._happens(Fault(calls, "hang", lasting=lasting))

    @rule(what=st.sampled_from(["ENOSPC", "EDQUOT"]))
    def quota_is_full(self, what: str) -> None:
        self._happens(Fault(1, what, lasting=True, only="write"))

    @rule()
    def all_is_well_again(self) -> None:
        def step(life: Life) -> None:
            life.calls.fault = None

        self.program.append(step)

    @rule()
    def events_overflow(self) -> None:
        self.program.append(lambda life: life.watcher.overflow())

    # -- lives ----------------------------------------------------------------------------------

    @precondition(lambda self: len(self.program) > 8)
    @rule()
    def power_fails(self) -> None:
        self._live(stops=False)

    @precondition(lambda self: len(self.program) > 8)
    @rule()
    def is_deployed_elsewhere(self) -> None:
        self._undeploy()
        self.here = 1 - self.here

    def _live(self, *, stops: bool) -> Life:
        place = self.nodes[self.here]
        self.lived += 1
        life = Life(place, list(self.program), stops=stops)

        def committed() -> None:
            if not is_base(life.sent[-1]):  # it holds what the checkpoint before it has
                self.committed.append(len(self.states) - 1)

        life.told_commit = committed
        life.live()
        del self.program[: life.done]
        count("crash points", int(life.died))
        count("faults injected", int(life.calls.struck > 0 and not life.died))
        allowed = {None, Exit.CLEAN, Exit.FLUSH_NOT_FINISHED, Exit.MOUNT_NOT_THERE}
        assert life.end in allowed, life.error
        if life.end is not Exit.CLEAN:
            self._look_elsewhere()
        return life

    def _undeploy(self) -> None:
        while self._live(stops=True).end is not Exit.CLEAN:
            pass
        work = picture(self.nodes[self.here].work)
        assert work == self.states[-1], "the working copy was touched"
        assert leftovers(self.store) == []
        found = self._restored(self.store)
        assert found == work, differ(work, found)
        self.committed.append(len(self.states) - 1)

    def _look_elsewhere(self) -> None:
        store = copied(self.store, self.home / "copy")
        unlock(Place(self.home / "looker", store))
        shutil.rmtree(self.home / "looker")
        found = self._restored(store)
        shutil.rmtree(store)
        problem = not_a_state(found, self.states, self.committed)
        assert problem is None, problem

    def _restored(self, store: Path) -> Picture:
        """Return what another node gets of a copy of ``store``."""
        copy = copied(store, self.home / "restored")
        place = Place(self.home / "other", copy)
        life = Life(place).live()
        count("states restored", 1)
        assert life.end is Exit.CLEAN, life.error
        found = picture(place.work)
        shutil.rmtree(place.home)
        shutil.rmtree(copy)
        return found


def is_base(checkpoint: str) -> bool:
    parsed = parse_name(checkpoint)
    assert parsed is not None
    return parsed[1]


def not_a_state(found: Picture, states: list[Picture], committed: list[int]) -> str | None:
    """Return why ``found`` is nothing that the project can have been; None where it is.

    Every path is as it was at or after the last checkpoint but one, whose removals may wait; and
    nothing is older than the database, which may name it.
    """
    last = committed[-1]
    before = max((number for number in committed if number < last), default=0)
    for path in sorted(set(found).union(*states[before:])):
        if not any(_may_be(path, found, state) for state in states[before:]):
            return f"{path!r} is as it never was since state {before}: {found.get(path)!r:.200}"
    database = os.fsencode(DATABASE)
    if database not in found:
        return None
    version = next(n for n, state in enumerate(states) if state.get(database) == found[database])
    for path in states[version]:
        renamed = (
            path not in states[version - 1]
            and states[version][path] in states[version - 1].values()
        )
        waits = renamed or path not in states[last]  # it goes as it was before, a batch later
        if not waits and not any(_may_be(path, found, state) for state in states[version:]):
            return f"{path!r} is older than the database of state {version}"
    return None


def _may_be(path: bytes, found: Picture, state: Picture) -> bool:
    """Whether ``path`` is what it is in ``state``; newcomers have no mode and time yet."""
    here, there = found.get(path), state.get(path)
    if here is None or there is None:
        return here is there
    if here[0] != there[0]:
        return False
    return here[0] == "dir" or here[1] == there[1]


def run_some(machine: type[Deployments], examples: int, steps: int, *, derandomize: bool) -> None:
    chosen = settings(
        max_examples=examples,
        stateful_step_count=steps,
        derandomize=derandomize,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(machine, settings=chosen)


def test_some_deployments() -> None:
    run_some(Deployments, 10, 40, derandomize=True)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_many_deployments(chunk: int) -> None:
    seeded = seed(SEED + chunk)(type("Deployments", (Deployments,), {}))
    run_some(seeded, MANY // CHUNKS, 80, derandomize=False)
