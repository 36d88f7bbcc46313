"""A trial in real processes: the program, on a mount of the stand-in for OneData."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from glob import glob
from pathlib import Path
from types import TracebackType
from typing import ClassVar

from onesync.control import NotRunning, ask
from onesync.errors import Exit
from tests.campaign.calls import Fault
from tests.campaign.story import ACTS, Act, Story, changes, creates, patches
from tests.campaign.trial import Trial, differ
from tests.node import SOON, Node, picture
from tests.standin.mounted import Mounted

LARGE = 1 << 20
"""From so many bytes on a file really is large."""

STORY: tuple[Act, ...] = (
    partial(creates, large=LARGE),
    partial(changes, large=LARGE),
    partial(patches, large=LARGE),
    *ACTS[3:],
)
DEATHS = ("crash", "orphans", "power")
"""The program dies with its children, without them, or with them and the mount."""

_AT_ALL_COSTS, _AT_ONCE = 20, 0.5
_TRIES = 3
_N = 2
"""Of a claim without a record the next life must see for ten times as long that it is dead."""


@dataclass
class ProcessLife:
    """One process' life, from its start to its end by SIGTERM or by what befalls it.

    The program is stopped while the story goes on, so that no batch sees half an act. After each
    act it is flushed: until that succeeds, or where the fault lasts until it has failed.

    Attributes:
        end: the exit code; None where it died.
        error: the end of its log, where that says why.
        done: how many acts there were.
        happened: whether the fault struck.
    """

    node: Node
    mounted: Mounted
    story: Story
    acts: Sequence[Act]
    fault: Fault | None = None
    end: Exit | None = None
    error: str = ""
    done: int = 0
    happened: bool = False

    @property
    def died(self) -> bool:
        return self.end is None

    def live(self) -> ProcessLife:
        """Live it; afterwards nothing fails any more, and the mount is there."""
        lasts = self.fault is not None and self.fault.lasting
        self.node.configure(
            mount__require_fuse=True,
            mount__io_timeout_seconds=_N,
            guards__unexplained_percent=100,
            undeploy__flush_retry_seconds=_AT_ONCE if lasts else _AT_ALL_COSTS,
        )
        self.mounted.reset()
        self.node.start()
        if self.fault is not None:
            self._arm(self.fault)
        if self._syncs():
            self._go_through(lasts)
        code = self.node.end()
        self.end = Exit(code) if code >= 0 else None
        self.error = "" if self.end is Exit.CLEAN else self.node.log()[-2000:]
        if self.died and self.fault is not None and self.fault.what == "power":
            self.mounted.died()
        self._make_well()
        wait_for_children_of(self.node)
        return self

    def _arm(self, fault: Fault) -> None:
        """Let the fault come; a death takes the program, its children and perhaps the mount."""
        assert self.node.process is not None
        more = {
            "nth": fault.number,
            "times": -1 if fault.lasting else 1,
            "applied": fault.applied,
        }
        if fault.what in DEATHS:
            mount = [self.mounted.pid] if fault.what == "power" else []
            victims = [self.node.process.pid, *mount]
            self.mounted.kill_at("*", victims=victims, orphans=fault.what == "orphans", **more)
        else:
            self.mounted.fail("*", getattr(errno, fault.what), **more)

    def _make_well(self) -> None:
        alive = self.mounted.running()
        if self.fault is not None and self.fault.what not in DEATHS:
            self.happened = self.fault.number <= self.mounted.calls()
        else:
            self.happened = self.died
        if alive:
            self.mounted.clear()
        else:
            self.mounted.remount()

    def _syncs(self) -> bool:
        """Wait until it syncs; False where it has ended."""
        deadline = time.monotonic() + 2 * SOON
        while self.node.running():
            if self.node.status()["phase"] in ("syncing", "backing_off"):
                return True
            assert time.monotonic() < deadline, self.node.log()
            time.sleep(0.02)
        return False

    def _go_through(self, lasts: bool) -> None:
        """Do what is left of the story; what an earlier life left is flushed first."""
        if not self._flushes(lasts):
            return
        if not self.story.states:
            self.story.do(lambda _: None, self.node.work)
        for act in self.acts:
            self._do(act)
            if not self._flushes(lasts):
                return

    def _do(self, act: Act) -> None:
        assert self.node.process is not None
        self.node.process.send_signal(signal.SIGSTOP)
        try:
            self.story.do(act, self.node.work)
            self.done += 1
        finally:
            self.node.process.send_signal(signal.SIGCONT)

    def _flushes(self, lasts: bool) -> bool:
        deadline = time.monotonic() + SOON
        while True:
            try:
                answer = ask(self.node.home / "run" / "control.sock", "flush", SOON)
            except NotRunning:
                return False
            if answer["ok"] and not answer["problems"]:
                self.story.safe = max(0, len(self.story.states) - 1)
                return True
            if lasts:
                return False
            assert time.monotonic() < deadline, (answer, self.node.log())
            time.sleep(0.1)


def wait_for_children_of(node: Node) -> None:
    """Wait until nobody makes calls on the node's mount any more; the program has ended."""
    deadline = time.monotonic() + SOON
    while any(_is_child(Path(command), node) for command in glob("/proc/[0-9]*/cmdline")):
        assert time.monotonic() < deadline, "a child outlives its parent"
        time.sleep(0.01)


def _is_child(command: Path, node: Node) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError):
        words = command.read_bytes().split(b"\0")
        return b"onesync.replica.child" in words and os.fsencode(node.store) in words
    return False


@dataclass
class ProcessTrial(Trial):
    """A trial (``trial.Trial``) whose lives are processes; use it in a ``with`` block.

    What another node would get now is looked at in this process, of a copy of the folder.
    """

    acts: tuple[Act, ...] = STORY
    profile: str = "plain"
    WHERE: ClassVar[str] = " in real processes"
    # On a busy machine the mount may be too slow, and systemd would try again.
    ALWAYS: ClassVar[frozenset[Exit]] = frozenset((Exit.CLEAN, Exit.MOUNT_NOT_THERE))

    def __post_init__(self) -> None:
        super().__post_init__()
        self.mounted = Mounted(
            self.home / "onedata", backing=self.home / "backing", profile=self.profile
        )
        self.one, self.two = (
            Node(self.home / name, self.mounted.path / "project") for name in ("one", "two")
        )
        self.two.configure(mount__require_fuse=True)

    def __enter__(self) -> ProcessTrial:
        self.mounted.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for node in (self.one, self.two):
            if node.running():
                node.end(signal.SIGKILL)
        self.mounted.stop()
        self.clear()

    def live(self, fault: Fault | None = None, dies_at: int = 0) -> bool:
        """Live on, from where the last life came to; returns whether anything happened to it."""
        assert not dies_at
        done = sum(life.done for life in self.lives)
        life = ProcessLife(self.one, self.mounted, self.story, self.acts[done:], fault).live()
        self.lives.append(life)
        self._judge(life, fault if life.happened else None)
        return life.happened

    def converge(self) -> None:
        """Live on until a life ends undeployed (``Trial``); systemd starts it again as often."""
        for _ in range(_TRIES):
            if self.lives[-1].end in (Exit.CLEAN, None):
                break
            self.live()
        super().converge()

    def stage_in_elsewhere(self) -> None:
        """Compare what was undeployed with what a second node gets through the mount."""
        if self.wrong:
            return
        self.two.deploy()
        found, wanted = picture(self.two.work), self.story.states[-1]
        if found != wanted:
            self.wrong.append(f"the second node has something else: {differ(wanted, found)}")
        if code := self.two.end():
            self.wrong.append(f"the second node ended with {code}: {self.two.log()[-2000:]}")

    def _folder(self) -> Path:
        return self.home / "backing" / "project"
