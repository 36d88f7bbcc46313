"""One trial: a life to which something happens, then everything that must hold all the same."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import ClassVar, Protocol

from onesync.errors import Exit
from onesync.lock import Lock
from tests.campaign.calls import Calls, Fault
from tests.campaign.counts import count
from tests.campaign.life import BEGIN, Direct, Life, Place, Step, copied
from tests.campaign.story import ACTS, RETURN, Act, Picture, Story, leftovers, prepare
from tests.campaign.virtual import VirtualClock
from tests.node import picture

_FLUSH_AFTER = 3


class Lived(Protocol):
    """What became of a life: its exit code (None: it died), and how many steps it had."""

    end: Exit | None
    error: str
    done: int

    @property
    def died(self) -> bool:
        """Whether it did not end by itself."""


@dataclass
class Trial:
    """Everything happens in ``home``; ``wrong`` are the promises that were broken.

    Where it ``returns``, another node had the whole story first, and this one goes on, on a mount
    that cannot tell what has arrived.
    """

    home: Path
    returns: bool = False
    story: Story = field(default_factory=Story)
    wrong: list[str] = field(default_factory=list)
    lives: list[Lived] = field(default_factory=list)
    had_outage: bool = False
    WHERE: ClassVar[str] = ""
    ALWAYS: ClassVar[frozenset[Exit]] = frozenset((Exit.CLEAN,))

    def __post_init__(self) -> None:
        self.store = self._folder()
        acts: tuple[Act, ...] = ACTS
        if self.returns:
            store, self.first = _undeployed()
            copied(store, self.store)
            self.story.states.append(self.first)
            acts = RETURN
        else:
            prepare(self.store)
            self.first = contents(picture(self.store))
        self.node = Place(self.home / "one", self.store, tells=not self.returns)
        steps: list[Step] = [self.story.step(lambda _: None), *map(self.story.step, acts)]
        steps.insert(_FLUSH_AFTER, self.story.flushes)
        self.steps = steps

    def live(self, fault: Fault | None = None, dies_at: int = 0) -> bool:
        """Live on, from where the last life came to; returns whether anything happened to it."""
        done = sum(life.done for life in self.lives)
        life = Life(self.node, self.steps[done:], fault, dies_at).live()
        self.lives.append(life)
        happened = bool(life.calls.struck) or life.boundaries >= dies_at > 0
        self._judge(life, fault if happened else None)
        if fault is not None and fault.lasting and any(life.succeeded_after):
            self.wrong.append("a success was told while every call failed")
        return happened

    def converge(self) -> None:
        """Live on undisturbed, undeploy, and compare with what another node gets."""
        if self.lives[-1].end is not Exit.CLEAN:
            self.live()
            last = self.lives[-1]
            if last.end is not Exit.CLEAN:
                self.wrong.append(f"the next life ended with {last.end!r}: {last.error}")
                return
        work = picture(self.node.work)
        if work != self.story.states[-1]:
            self.wrong.append(
                f"the working copy was touched: {differ(self.story.states[-1], work)}"
            )
        if found := leftovers(self.store):
            self.wrong.append(f"left behind: {found}")
        restored = self._restore(self.store, "other")
        if restored is not None and restored != work:
            self.wrong.append(f"what was undeployed is not what is there: {differ(work, restored)}")

    def clear(self) -> None:
        """Remove everything: a campaign makes many."""
        shutil.rmtree(self.home)

    def _folder(self) -> Path:
        """The folder of OneData as it really is, not as the mount shows it."""
        return self.home / "store"

    def _judge(self, life: Lived, fault: Fault | None) -> None:
        """See that a life ended as it may, after the ``fault`` that it met."""
        self.had_outage |= fault is not None and fault.lasting
        count(f"faults injected{self.WHERE}", int(fault is not None and not life.died))
        count(f"crash points{self.WHERE}", int(life.died))
        self._judge_end(life, fault)
        if life.end is not Exit.CLEAN:
            self._look_elsewhere()

    def _judge_end(self, life: Lived, fault: Fault | None) -> None:
        allowed = set(self.ALWAYS)
        if fault is not None:
            allowed.add(Exit.MOUNT_NOT_THERE)
        if fault is not None and fault.lasting:
            allowed.add(Exit.FLUSH_NOT_FINISHED)
        if not life.died and life.end not in allowed:
            self.wrong.append(f"ended with {life.end!r}: {life.error}")

    def _look_elsewhere(self) -> None:
        """Look what another node would get now, of a copy of the folder."""
        store = copied(self.store, self.home / "copy")
        unlock(Place(self.home / "elsewhere", store))
        restored = self._restore(store, "elsewhere")
        shutil.rmtree(self.home / "elsewhere")
        shutil.rmtree(store)
        if restored is None:
            return
        if not self.story.states:
            if contents(restored) != self.first:
                self.wrong.append(f"elsewhere: {differ(self.first, contents(restored))}")
        elif not self.story.is_state(restored, after_outage=self.had_outage):
            near = [differ(state, restored) for state in self.story.states[self.story.safe :]]
            self.wrong.append(f"no state of the project: {min(near, key=len)}")

    def _restore(self, store: Path, name: str) -> Picture | None:
        place = Place(self.home / name, store)
        life = Life(place).live()
        count("states restored", 1)
        if life.end is not Exit.CLEAN:
            self.wrong.append(f"{name} cannot deploy: {life.end!r}: {life.error}")
            return None
        return picture(place.work)


@cache
def _undeployed() -> tuple[Path, Picture]:
    """Return the folder as another node left it that had the whole story, and what it had."""
    home = Path(tempfile.mkdtemp(prefix="onesync-undeployed-", dir="/dev/shm"))
    atexit.register(shutil.rmtree, home)
    store = home / "store"
    prepare(store)
    before = Story()
    life = Life(Place(home / "before", store), [before.step(act) for act in ACTS]).live()
    assert life.end is Exit.CLEAN, life.error
    return store, before.states[-1]


def contents(found: Picture) -> Picture:
    """Return kinds and contents alone."""
    status = b".deployment_status_do_not_delete"
    return {p: v[:2] if v[0] == "file" else v[:1] for p, v in found.items() if status not in p}


def differ(wanted: Picture, found: Picture) -> list[object]:
    """Return what differs, briefly."""
    return [
        (path, _short(wanted.get(path)), _short(found.get(path)))
        for path in sorted(wanted.keys() | found.keys())
        if wanted.get(path) != found.get(path)
    ]


def _short(value: tuple[object, ...] | None) -> object:
    if value is None or value[0] != "file":
        return value
    content = value[1]
    assert isinstance(content, bytes)
    return ("file", len(content), content[:12], *value[2:])


def unlock(place: Place) -> None:
    """What a person does who knows that the owner is dead: ``onesync unlock``."""
    clock = VirtualClock(BEGIN, lambda *_: None)
    root = os.fsencode(place.store)
    lock = Lock(
        Direct(root, Calls(root)), clock, place.settings().lock_times(), place.claimant(), None
    )
    epochs = place.store / ".deployment_status_do_not_delete" / "epochs"
    for claim in sorted(epochs.glob("[0-9]*")):
        if not (claim / "end.json").exists():
            lock.unlock(int(claim.name))
