"""A daemon with nothing to do: nothing of it wakes up."""

from __future__ import annotations

import gc
import json
import os
import socket
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from onesync.replica.children import ChildrenReplica
from tests.node import SOON, Node


def _processes(node: Node) -> list[int]:
    assert node.process is not None
    found = [node.process.pid]
    for pid in found:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (thread / "children").read_text().split())
    return found


def _wakes(node: Node) -> int:
    """Return how often any thread of any of its processes went to sleep again so far."""
    found = 0
    for pid in _processes(node):
        for status in Path(f"/proc/{pid}/task").glob("*/status"):
            lines = status.read_text().splitlines()
            found += sum(int(x.split()[1]) for x in lines if "ctxt_switches" in x)
    return found


def test_between_rescans_nothing_wakes_up_and_whatever_comes_does(nodes: list[Node]) -> None:
    node, _ = nodes
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    node.within = ["unshare", "--mount", "--propagation", "private"]  # others' mounts wake nobody
    # The heartbeat, every four minutes, is left out; and nobody asks for a watchdog.
    node.configure(mount__io_timeout_seconds=120, metrics__listen=f"127.0.0.1:{port}")
    node.deploy()
    (node.work / "a").write_text("1")
    assert node.flush() == 0
    deadline = time.monotonic() + SOON
    woken = 1
    while woken and time.monotonic() < deadline + SOON:
        before = _wakes(node)
        time.sleep(2)
        woken = _wakes(node) - before
    assert not woken, "in two seconds, after the last batch was verified"
    before, busy = _wakes(node), 0
    for _ in range(12):
        time.sleep(1)
        now = _wakes(node)
        busy, before = busy + (now != before), now
    # Once it gives memory back, after a minute; whatever wakes by the clock does it more often.
    assert busy <= 1, "seconds of twelve in which anything of it woke up"
    # It rests, and is there at once.
    (node.work / "b").write_text("2")
    while not (node.store / "b").exists():
        assert time.monotonic() < deadline + SOON, node.log()
        time.sleep(0.05)
    assert node.flush() == 0
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        text = answer.read().decode()
    assert "onesync_pushed_files_total 2.0" in text
    assert 'onesync_phase{onesync_phase="syncing"} 1.0' in text
    rested = json.loads((node.home / "state" / "status.json").read_text())
    while rested["pending_paths"]:
        assert time.monotonic() < deadline + 2 * SOON, "the rest is published too"
        time.sleep(0.1)
        rested = json.loads((node.home / "state" / "status.json").read_text())
    assert node.end() == 0, node.log()


def test_children_that_rest_go_and_no_call_meets_one_that_went(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    gc.collect()  # what tests before this one left: Popen reaps what is garbage
    replica = ChildrenReplica(os.fsencode(tmp_path), 2, 2, 20)
    try:
        with ThreadPoolExecutor(4) as pool:
            calls = [pool.submit(replica.look, b"a") for _ in range(200)]
            while not all(call.done() for call in calls):
                replica.retire()
            assert all(call.result() is not None for call in calls)
        replica.retire()
        assert not _children(os.getpid()), "none is left, not even as a zombie"
        replica.warm()
        assert len(_children(os.getpid())) == 1
        assert replica.look(b"a") is not None
    finally:
        replica.close()


def _children(pid: int) -> list[str]:
    found: list[str] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError):  # a thread that ended just now
            found += (task / "children").read_text().split()
    commands = [Path(f"/proc/{child}/cmdline").read_text() for child in found]
    return [command for command in commands if "onesync.replica.child" in command or not command]
