"""The beat goes on whatever one beat meets; no thread of the daemon dies unnoticed."""

from __future__ import annotations

import errno
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any, cast

import pytest

from onesync.clock import SystemClock
from onesync.control import ask
from onesync.heartbeat import Heartbeat
from onesync.lock import Lock
from tests.node import SOON, Node
from tests.standin.mounted import Mounted


class _Times:
    beat = 0.01
    warn = 1.0


class _Lock:
    """One whose second beat finds no thread to be had."""

    times = _Times()

    def __init__(self) -> None:
        self.beats = 0
        self.went_on = threading.Event()

    def beat(self, _: str | None) -> None:
        self.beats += 1
        if self.beats == 2:
            raise RuntimeError("can't start new thread")
        if self.beats == 4:
            self.went_on.set()

    def age(self) -> float:
        return 0.0


def test_no_failure_of_one_beat_ends_the_next_ones() -> None:
    lock = _Lock()
    told: list[Exception | None] = []
    beat = Heartbeat(cast(Lock, lock), SystemClock(), lambda: None, told.append, lambda: None)
    beat.start()
    assert lock.went_on.wait(SOON)
    beat.stop()
    assert [type(error) for error in told[:3]] == [type(None), RuntimeError, type(None)]


# -- no thread dies unnoticed ----------------------------------------------------------------------


_LOOKS_LONG = """
import threading, time
from onesync.service import Service

real = Service._look

def fail(*_):
    raise MemoryError("no room for it")

def look(service):
    found = real(service)
    if threading.current_thread().name == "engine":
        soon = time.monotonic() + 2
        while "unexpected" not in open(WHERE).read() and time.monotonic() < soon:
            time.sleep(0.0001)
    return found

Service._look, Service._watch_mounts = look, fail
"""


def test_the_last_word_stays_the_last(nodes: list[Node]) -> None:
    """Another thread that began to tell the status before does not tell it afterwards."""
    one = nodes[0]
    one.deploy()
    one.end(signal.SIGKILL)
    told = one.home / "state" / "status.json"
    one.start_after(f"WHERE = {str(told)!r}\n{_LOOKS_LONG}")
    assert one.wait() == 1, one.log()
    assert [p["kind"] for p in one.status()["problems"]] == ["unexpected"]


@pytest.mark.parametrize(
    "place", ["watcher.InotifyWatcher._take_all", "service.Service._watch_mounts"]
)
def test_a_thread_that_dies_ends_the_daemon_and_the_next_start_goes_on(
    nodes: list[Node], place: str
) -> None:
    one = nodes[0]
    one.deploy()
    (one.work / "a").write_bytes(b"1")
    assert one.flush() == 0, one.log()
    one.end(signal.SIGKILL)
    module, owner, name = place.split(".")
    one.start_after(
        f"""
from onesync.{module} import {owner}
def fail(*_):
    raise MemoryError("no room for it")
{owner}.{name} = fail
"""
    )
    assert one.process is not None
    deadline = time.monotonic() + SOON
    while one.process.poll() is None:
        (one.work / "b").write_bytes(b"1")
        assert time.monotonic() < deadline, one.log()
        time.sleep(0.05)
    assert one.process.poll() == 1, one.log()
    (problem,) = (p for p in one.status()["problems"] if p["kind"] == "unexpected")
    assert "no room for it" in problem["text"]
    one.deploy()
    assert one.flush() == 0, one.log()
    assert (one.store / "b").read_bytes() == b"1"
    assert one.end() == 0, one.log()


def test_nobody_who_asks_can_end_the_daemon(nodes: list[Node]) -> None:
    one = nodes[0]
    one.deploy()
    place = one.home / "run" / "control.sock"
    answer: dict[str, Any] = ask(place, "pause", SOON, seconds="many")
    assert answer["ok"] is False
    for _ in range(20):  # who does not wait for his answer breaks the pipe
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.connect(str(place))
            connection.sendall(b'{"command": "status"}\n')
        assert one.status()["phase"] == "syncing"
    assert one.end() == 0, one.log()


# -- what is told where no beat is confirmed -------------------------------------------------------


@pytest.mark.fuse
def test_a_full_space_is_told_with_its_remedy_also_when_no_beat_fits(
    tmp_path: Path, mounted: Mounted
) -> None:
    one = Node(tmp_path / "node", mounted.path / "project", mount__io_timeout_seconds=1)
    one.deploy()
    for call in ("create", "write"):
        mounted.fail(call, errno.ENOSPC, times=-1)
    (one.work / "a").write_bytes(b"1")
    one.wait_for_phase("suspended")
    (problem,) = one.status()["problems"]
    assert problem["kind"] == "Suspended"
    assert "Raise the quota" in problem["text"]
    mounted.clear()
    one.wait_for_phase("syncing")
    assert one.flush() == 0, one.log()
    assert one.end() == 0, one.log()
