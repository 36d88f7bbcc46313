"""Fixtures for all tests, and what a machine must have for the marked ones."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.campaign import counts
from tests.campaign.life import Place, bring_in_portions
from tests.machine import lacks
from tests.node import Node
from tests.standin.mounted import Mounted
from tests.systemd import container


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what this machine cannot run, with the reason; under CI that is a failure."""
    for mark, missing in (("fuse", _no_fuse), ("systemd", container.missing)):
        if item.get_closest_marker(mark) is None or (reason := missing()) is None:
            continue
        lacks(reason)


@pytest.fixture(autouse=True)
def _interruptible() -> Iterator[None]:
    """A suite that was started in the background ignores SIGINT, and so would what it starts."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def _no_fuse() -> str | None:
    if Path("/dev/fuse").exists() and shutil.which("fusermount3"):
        return None
    return "needs /dev/fuse and fusermount3"


def pytest_configure(config: pytest.Config) -> None:
    """Give the campaign of all processes of this run one place for its counts."""
    # Each program that a test starts would be compiled anew.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    Node.is_forked = True
    if not hasattr(config, "workerinput"):
        fd, os.environ[counts.PLACE] = tempfile.mkstemp(prefix="onesync-campaign-")
        os.close(fd)


def pytest_collection_finish() -> None:
    """What was collected stays to the end: Python need not look again and again what of it goes."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tell what the campaign did."""
    place = Path(os.environ[counts.PLACE])
    if found := counts.counted(place):
        told = ", ".join(f"{number:,} {what}" for what, number in found.items())
        terminalreporter.write_line(f"campaign: {told}")


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        Path(os.environ.pop(counts.PLACE)).unlink(missing_ok=True)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A node of the campaign, with an empty folder."""
    return Place.make(tmp_path)


@pytest.fixture
def small_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let data come in many batches, which look at few of those that are left."""
    bring_in_portions(monkeypatch)


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Mounted]:
    """A stand-in for OneData with a folder ``project`` in it."""
    with Mounted(tmp_path / "onedata") as mount:
        (mount.backing / "project").mkdir()
        yield mount


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A plain folder that stands for OneData."""
    path = tmp_path / "store"
    path.mkdir()
    return path


@pytest.fixture
def nodes(tmp_path: Path, store: Path) -> Iterator[list[Node]]:
    """Two nodes with the folder ``store``."""
    made = [Node(tmp_path / name, store) for name in ("one", "two")]
    yield made
    for node in made:
        if node.running():
            node.end(signal.SIGKILL)
