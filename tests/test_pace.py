"""The bandwidth limit: what all processes send together keeps to it, and none seems to hang."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from onesync.errors import Exit
from onesync.replica.children import ChildrenReplica
from tests.node import Node

RATE = 2_000_000
PIECE = 1_000_000


def test_all_processes_together_keep_to_the_rate(tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    sources = [tmp_path / f"source {number}" for number in range(6)]
    for source in sources:
        source.write_bytes(os.urandom(PIECE))
    # A file waits for half a second of its own and for the others': longer than a call may hang.
    replica = ChildrenReplica(os.fsencode(store), 3, 2, 1.5, bytes_per_second=RATE)
    began = time.monotonic()
    with ThreadPoolExecutor(6) as pool:
        names = [b"file %d" % number for number in range(6)]
        list(pool.map(replica.put, map(os.fsencode, sources), names))
    took = time.monotonic() - began
    replica.close()
    assert 6 * PIECE / RATE <= took < 15
    assert sorted(path.stat().st_size for path in store.iterdir()) == [PIECE] * 6


def test_what_is_restored_is_not_slowed(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(PIECE) + b"end")
    replica = ChildrenReplica(os.fsencode(tmp_path), 1, 1, 20, bytes_per_second=1)
    replica.fetch(b"large", os.fsencode(tmp_path / "restored"), 0o600, None)
    assert replica.digest(b"large")[1] == PIECE + 3
    replica.close()


def test_a_daemon_with_a_limit_says_what_is_behind_and_flushes_all(nodes: list[Node]) -> None:
    one = nodes[0]
    one.configure(push__bandwidth_limit="1 MB", push__round_seconds=0.5)
    one.deploy()
    (one.work / "large").write_bytes(os.urandom(3 * PIECE))
    began = time.monotonic()
    assert one.flush() == 0, one.log()
    assert 2 <= time.monotonic() - began < 15
    assert (one.store / "large").read_bytes() == (one.work / "large").read_bytes()
    assert one.end() == Exit.CLEAN, one.log()


@pytest.mark.parametrize("change", ["appended", "in the middle"])
def test_what_changes_of_a_large_file_keeps_to_the_limit(nodes: list[Node], change: str) -> None:
    one = nodes[0]
    (one.store / "large").write_bytes(os.urandom(10 * PIECE))
    one.configure(push__bandwidth_limit="1 MB")
    one.deploy()
    with (one.work / "large").open("r+b") as file:
        file.seek(0 if change == "in the middle" else 10 * PIECE)
        file.write(os.urandom(3 * PIECE))
    began = time.monotonic()
    assert one.flush() == 0, one.log()
    assert 2 <= time.monotonic() - began < 20
    assert (one.store / "large").read_bytes() == (one.work / "large").read_bytes()
    assert one.end() == Exit.CLEAN, one.log()


def test_a_limit_that_is_none_is_refused(nodes: list[Node]) -> None:
    nodes[0].configure(push__bandwidth_limit="fast")
    refused = nodes[0].command("check")
    assert refused.returncode == Exit.CONFIGURATION
    assert "push.bandwidth_limit" in refused.stderr
