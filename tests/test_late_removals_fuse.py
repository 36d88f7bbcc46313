"""Removed files go beside the batches that follow, and markers before their data."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from tests.bench.test_counts import wait_until_verified
from tests.node import SOON, Node
from tests.standin.mounted import Mounted

pytestmark = pytest.mark.fuse


@pytest.fixture
def store(mounted: Mounted) -> Path:
    return mounted.path / "project"


@pytest.fixture
def one(nodes: list[Node]) -> Node:
    node = nodes[0]
    node.configure(mount__require_fuse=True, mount__io_timeout_seconds=2)
    return node


@pytest.mark.parametrize(
    "pause",
    [0.0, 5.0],
    ids=["at once", "verified"],
)
def test_new_files_come_beside_the_removals(one: Node, mounted: Mounted, pause: float) -> None:
    """Neither what is pushed nor what is verified meanwhile waits for all that still goes."""
    # Without a settle time all that is marked is due: a second batch would wait for the first one.
    one.configure(mount__require_fuse=True, mount__io_timeout_seconds=20, batch__settle_seconds=0)
    one.deploy()
    files = [one.work / "d" / f"{number}" for number in range(200)]
    files[0].parent.mkdir()
    assert one.flush() == 0, one.log()
    one.pause()
    for file in files:
        file.write_bytes(b"x")
    one.go_on()
    assert one.flush() == 0, one.log()  # in one batch: it is verified in one round
    wait_until_verified(one)
    mounted.delay_at("unlink", 0.3, pattern="/d/", times=-1)
    assert one.command("pause", "--for", "1h").returncode == 0
    one.wait_for_phase("paused")
    for file in files:
        file.unlink()
    one.wait_until(lambda: one.status()["pending_paths"] >= len(files))
    assert one.command("resume").returncode == 0
    stored = mounted.backing / "project"
    one.wait_until(lambda: len(list((stored / "d").iterdir())) < 195)
    (one.work / "first").write_bytes(b"first")
    one.wait_until(lambda: (stored / "first").exists())
    time.sleep(pause)  # it is due to be verified
    (one.work / "new").write_bytes(b"new")
    took = one.wait_until(lambda: (stored / "new").exists())
    left = len(list((stored / "d").iterdir()))
    mounted.clear()
    assert left > 0, f"it came after all removals, {took:.1f} s"


def test_a_marker_goes_before_its_data(one: Node, mounted: Mounted) -> None:
    """The raw folder: no marker without its data."""
    one.configure(mount__require_fuse=True, mount__io_timeout_seconds=20)
    one.deploy()
    extra = one.work / "Runs" / "000001_ProtMock" / "extra"
    (extra / "DONE").mkdir(parents=True)
    names = [f"mic_{number}" for number in range(40)]
    for name in names:
        (extra / f"{name}.mrc").write_bytes(b"data")
        (extra / "DONE" / f"{name}.TXT").write_bytes(b"")
    assert one.flush() == 0, one.log()
    mounted.delay_at("unlink", 0.2, pattern="/DONE/", times=-1)
    one.pause()
    for name in names:
        (extra / "DONE" / f"{name}.TXT").unlink()
        (extra / f"{name}.mrc").unlink()
    one.go_on()
    stored = mounted.backing / "project" / extra.relative_to(one.work)
    bad = 0
    deadline = time.monotonic() + SOON
    while os.listdir(stored) != ["DONE"] or os.listdir(stored / "DONE"):
        assert time.monotonic() < deadline, one.log()
        # Data are listed first: what has a marker afterwards must have had its data before.
        data = {name.removesuffix(".mrc") for name in os.listdir(stored)}
        names = os.listdir(stored / "DONE")
        markers = {name.removesuffix(".TXT") for name in names if name[0] != "."}
        bad = max(bad, len(markers - data))
        time.sleep(0.02)
    mounted.clear()
    assert bad == 0, f"{bad} markers stood without their data"


def test_an_upload_that_no_listing_shows_is_kept(one: Node, mounted: Mounted) -> None:
    """Listings of 18.02 are seconds old: what they lack may be there."""
    one.deploy()
    run = one.work / "Runs" / "1"
    run.mkdir(parents=True)
    (run / "a").write_bytes(b"a")
    assert one.flush() == 0, one.log()
    stored = mounted.backing / "project" / "Runs" / "1"
    (stored / "theirs").write_bytes(b"precious")
    mounted.hide("theirs")
    shutil.rmtree(run)
    one.wait_until(lambda: not (stored / "a").exists())
    assert one.flush() == 3, "somebody is told"
    mounted.show()
    assert (stored / "theirs").read_bytes() == b"precious"
    assert any(
        "Runs/1 was deleted, but holds" in problem["text"] for problem in one.status()["problems"]
    )
    assert one.end() == 0, one.log()
    assert (stored / "theirs").read_bytes() == b"precious"
