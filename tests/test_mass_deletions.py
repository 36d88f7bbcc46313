"""A user deletes a run of many files: nobody is asked, whatever happens to daemon and kernel."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from onesync.index import Index
from tests.node import Node
from tests.standin.mounted import Mounted

pytestmark = [pytest.mark.fuse, pytest.mark.timeout(3600)]

FULL = 60_000
MANY = 2_500
"""More than the bound of an index of this size, and quick enough for every day."""
QUEUE = 16_384


class PatientNode(Node):
    """A node that has much to do."""

    patience = 0.0

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit code: a last flush goes through all that there is."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(self.patience)


@pytest.fixture(params=[MANY, pytest.param(FULL, marks=pytest.mark.soak)])
def size(request: pytest.FixtureRequest) -> int:
    number: int = request.param
    return number


@pytest.fixture
def one(tmp_path: Path, mounted: Mounted, size: int) -> Iterator[PatientNode]:
    """A node that has a run of ``size`` files, and a small one beside it.

    It staged them in from the storage itself, where each call costs a tenth; nothing here is about
    that.
    """
    project = mounted.backing / "project"
    fill(project / "Runs" / "one", size)
    fill(project / "Runs" / "two", 100)
    node = PatientNode(tmp_path / "node", project)
    node.patience = 60 + size / 50
    node.start()
    until(node, lambda: node.status()["phase"] == "syncing")
    assert node.command("handover").returncode == 0, node.log()
    assert node.wait() == 0
    node.store = mounted.path / "project"
    node.configure()
    node.start()
    until(node, lambda: node.status()["phase"] == "syncing")
    yield node
    if node.running():
        node.go_on()
        node.end(signal.SIGKILL)


def fill(run: Path, size: int, content: bytes = b"1") -> None:
    for name in ("extra", "tmp"):
        (run / name).mkdir(parents=True, exist_ok=True)
    for number in range(size):
        (run / ("tmp" if number % 10 else "extra") / f"mic_{number:05d}.mrc").write_bytes(content)


def until(node: PatientNode, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + node.patience
    while not condition():
        assert node.running(), node.log()
        assert time.monotonic() < deadline, (node.status(), node.log()[-5000:])
        time.sleep(0.1)


def runs(mounted: Mounted) -> set[str]:
    return {path.name for path in (mounted.backing / "project" / "Runs").glob("[a-z]*")}


def files(run: Path) -> set[str]:
    # What goes just now is met by a walk without an error.
    return {
        os.path.relpath(os.path.join(top, name), run)
        for top, _, found in os.walk(run)
        for name in found
    }


def nobody_was_asked(node: PatientNode) -> bool:
    status = node.status()
    kinds = {problem["kind"] for problem in status["problems"]}
    assert "held_deletions" not in kinds
    return "are missing" not in node.log() and status["held_deletions"] == 0


def ended(node: PatientNode) -> None:
    assert node.process is not None
    node.process.send_signal(signal.SIGTERM)
    assert node.process.wait(node.patience) == 0, node.log()


def gone(node: PatientNode, mounted: Mounted) -> bool:
    """Whether the run, all that was put aside, and the work are gone."""
    idle = node.status()["pending_paths"] == 0
    # What goes just now is met by this walk without an error.
    named = {name for _, *names in os.walk(mounted.backing) for found in names for name in found}
    aside = any(name.startswith(".onesync~") for name in named)
    return idle and runs(mounted) == {"two"} and not aside


def overflow(node: PatientNode) -> None:
    """Let the daemon stand still and fill the kernel's queue of its events."""
    node.pause()
    for name in ("a", "b"):
        (node.work / name).touch()
    for _ in range(QUEUE // 2 + 100):
        for name in ("a", "b"):
            (node.work / name).chmod(0o644)


def explained(node: PatientNode) -> frozenset[bytes]:
    """What the daemon would know of deletions if it died now."""
    with closing(Index(node.home / "state" / "index.sqlite", readonly=True)) as index:
        return index.explained()


def remove(path: Path) -> None:
    subprocess.run(["rm", "-rf", str(path)], check=True)


def test_a_run_deleted_under_the_watcher(one: PatientNode, mounted: Mounted, size: int) -> None:
    mounted.reset()
    began = time.monotonic()
    remove(one.work / "Runs" / "one")
    deleted = time.monotonic() - began
    until(one, lambda: gone(one, mounted))
    took = time.monotonic() - began
    calls = mounted.calls() / size
    sys.stdout.write(
        f"{size} files: rm {deleted:.1f} s, gone after {took:.1f} s, {calls:.2f} calls each\n"
    )
    assert nobody_was_asked(one)
    assert calls < 4, mounted.counts()
    ended(one)


def test_a_run_deleted_while_events_are_lost_in_the_middle(
    one: PatientNode, mounted: Mounted
) -> None:
    run = one.work / "Runs" / "one"
    overflow(one)
    for path in (run / "tmp").iterdir():
        path.unlink()
    one.go_on()
    # Half of the deletion is seen, and nobody told of it; its directories are still there.
    until(one, lambda: "unexplained absences wait" in one.log())
    assert "kernel events were dropped" in one.log()
    remove(run)
    until(one, lambda: gone(one, mounted))
    assert nobody_was_asked(one)
    ended(one)


def test_a_protocol_that_is_restarted(one: PatientNode, mounted: Mounted) -> None:
    run = one.work / "Runs" / "one"
    stored = mounted.backing / "project" / "Runs" / "one"
    for content in (b"2", b"3"):
        remove(run)
        fill(run, 50, content)
    until(one, lambda: files(stored) == files(run) and one.status()["pending_paths"] == 0)
    assert (stored / "tmp" / "mic_00001.mrc").read_bytes() == b"3"
    assert nobody_was_asked(one)
    ended(one)


def test_a_protocol_that_is_restarted_while_events_are_lost(
    one: PatientNode, mounted: Mounted
) -> None:
    run = one.work / "Runs" / "one"
    stored = mounted.backing / "project" / "Runs" / "one"
    overflow(one)
    remove(run)
    fill(run, 50, b"2")
    one.go_on()
    until(one, lambda: files(stored) == files(run) and one.status()["pending_paths"] == 0)
    assert "kernel events were dropped" in one.log()
    assert nobody_was_asked(one)
    ended(one)


def test_a_daemon_that_dies_before_the_deletion_is_pushed(
    one: PatientNode, mounted: Mounted
) -> None:
    mounted.fail("create", errno.EACCES, times=-1, pattern="intent")
    remove(one.work / "Runs" / "one")
    until(one, lambda: explained(one) == {b"Runs/one"})
    assert runs(mounted) == {"one", "two"}
    one.end(signal.SIGKILL)
    mounted.clear()
    one.start()
    until(one, lambda: gone(one, mounted))
    assert nobody_was_asked(one)
    until(one, lambda: explained(one) == set())
    ended(one)


def test_a_daemon_that_leaves_before_the_deletion_is_pushed(
    one: PatientNode, mounted: Mounted
) -> None:
    one.configure(undeploy__flush_retry_seconds=1)
    ended(one)
    one.start()
    until(one, lambda: one.status()["phase"] == "syncing")
    mounted.fail("create", errno.EACCES, times=-1, pattern="intent")
    remove(one.work / "Runs" / "one")
    assert one.end() == 10, one.log()
    mounted.clear()
    assert runs(mounted) == {"one", "two"}
    one.start()
    until(one, lambda: gone(one, mounted))
    assert nobody_was_asked(one)
    ended(one)


def test_a_run_deleted_while_nobody_watches_is_held_and_let_go(
    one: PatientNode, mounted: Mounted, size: int
) -> None:
    assert one.command("handover").returncode == 0, one.log()
    assert one.wait() == 0
    remove(one.work / "Runs" / "one")
    one.start()
    until(one, lambda: one.status()["held_deletions"] == size + 3)
    assert one.status()["phase"] == "syncing"
    assert runs(mounted) == {"one", "two"}
    (one.work / "Runs" / "three").mkdir()
    (one.work / "Runs" / "three" / "new").write_bytes(b"the rest goes on")
    until(one, lambda: (mounted.backing / "project" / "Runs" / "three" / "new").exists())
    assert len(files(mounted.backing / "project" / "Runs" / "one")) == size
    accepted = one.command("resume", "--accept-deletions")
    assert accepted.returncode == 0, accepted.stderr
    shutil.rmtree(one.work / "Runs" / "three")
    until(one, lambda: gone(one, mounted))
    assert nobody_is_asked_any_more(one)
    ended(one)


def nobody_is_asked_any_more(node: PatientNode) -> bool:
    status = node.status()
    return (status["held_deletions"], status["problems"]) == (0, [])
