"""Fixtures for all tests, and what a machine must have for the marked ones."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.standin.mounted import Mounted


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what this machine cannot run, with the reason; under CI that is a failure."""
    if item.get_closest_marker("fuse") is None:
        return
    if Path("/dev/fuse").exists() and shutil.which("fusermount3"):
        return
    reason = "needs /dev/fuse and fusermount3"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Mounted]:
    """A stand-in for OneData with a folder ``project`` in it."""
    with Mounted(tmp_path / "onedata") as mount:
        (mount.backing / "project").mkdir()
        yield mount
