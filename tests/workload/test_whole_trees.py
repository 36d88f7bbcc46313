"""A finished project of the specification's size is pushed while it is made, and comes back whole.

ONESYNC_TREES names the sizes of the soak: ``S`` by default; ``L`` takes 50 GB of disk and an hour.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.node import Node
from tests.standin.passthrough import Passthrough
from tests.workload.oracle import check_end, deploy_patiently
from tests.workload.tree import make_tree

LARGE = os.environ.get("ONESYNC_TREES", "S").split(",")
PATIENCE = {"XS": 60.0, "S": 900.0, "L": 9000.0}
SEED = 1

pytestmark = [pytest.mark.fuse, pytest.mark.timeout(120)]


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Passthrough]:
    with Passthrough(tmp_path) as mount:
        (mount.backing / "project").mkdir()
        yield mount


@pytest.fixture
def both(tmp_path: Path, mounted: Passthrough) -> Iterator[list[Node]]:
    project = mounted.path / "project"
    nodes = [Node(tmp_path / name, project, mount__require_fuse=True) for name in ("one", "two")]
    yield nodes
    for node in nodes:
        if node.running():
            node.end(signal.SIGKILL)


def wait_for(node: Node, phase: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while node.status()["phase"] != phase:
        assert node.running(), node.log()
        assert time.monotonic() < deadline, node.log()
        time.sleep(0.2)


def comes_back(both: list[Node], size: str) -> None:
    one, two = both
    deploy_patiently(one)
    entries = make_tree(one.work, size, SEED)
    began = time.monotonic()
    assert one.process is not None
    one.process.send_signal(signal.SIGTERM)
    assert one.process.wait(PATIENCE[size]) == 0, one.log()
    pushed = time.monotonic()
    two.start()
    wait_for(two, "syncing", PATIENCE[size])
    staged = time.monotonic()
    assert check_end(one.work, two.work) == []
    assert two.status()["problems"] == []
    flush, stage_in = pushed - began, staged - pushed
    told = (
        f"{entries:,} entries, flushed in {flush:.0f} s after the last, staged in {stage_in:.0f} s"
    )
    sys.stdout.write(f"\na project of size {size}: {told}\n")


def test_a_small_project_comes_back(both: list[Node]) -> None:
    comes_back(both, "XS")


@pytest.mark.soak
@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize("size", LARGE)
def test_a_project_comes_back(both: list[Node], size: str) -> None:
    comes_back(both, size)
