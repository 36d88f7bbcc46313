"""Fixtures for all tests, and what a machine must have for the marked ones."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.node import Node
from tests.standin.mounted import Mounted
from tests.systemd import container


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what this machine cannot run, with the reason; under CI that is a failure."""
    for mark, missing in (("fuse", _no_fuse), ("systemd", container.missing)):
        if item.get_closest_marker(mark) is None or (reason := missing()) is None:
            continue
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)


def _no_fuse() -> str | None:
    if Path("/dev/fuse").exists() and shutil.which("fusermount3"):
        return None
    return "needs /dev/fuse and fusermount3"


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
