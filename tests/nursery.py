"""Starts Python programs without the half second that an interpreter and its imports take.

A *nursery*, one for each process that runs tests, has imported the program and the stand-in, has
one thread and does nothing of its own. What it forks is a process like any other: it has its own
arguments, environment, directory and descriptors, and ends as an interpreter does.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol

_REPOSITORY = Path(__file__).parents[1]
_MODULES = (
    "onesync.program",
    "onesync.configuration",
    "onesync.cli",
    "onesync.inspect",
    "onesync.service",
    "tests.standin.onedata",
)
_LONGEST = 1 << 20
_STANDARD = 3
"""Standard input, output and error output."""


class Process(Protocol):
    """What tests ask of a process, as subprocess.Popen answers it."""

    pid: int

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def send_signal(self, sig: int) -> None: ...

    def terminate(self) -> None: ...

    def kill(self) -> None: ...


def start(module: str, arguments: Sequence[str], *outputs: int, before: str = "") -> Process:
    """Run the ``main`` of a module, after the statements ``before``, in a process of its own.

    ``outputs`` are the descriptors for its standard and error output; none: those of this process.
    """
    out, error = outputs or (1, 2)
    program = f"{before}\nfrom {module} import main\nmain()"
    return Forked(_nursery(), [program, module, *arguments], (out, error))


class Forked:
    """A process that the nursery forked. Safe in several threads."""

    def __init__(self, nursery: _Nursery, command: list[str], outputs: tuple[int, int]) -> None:
        self._nursery = nursery
        self._reaping = threading.Lock()
        self._code: int | None = None
        self.pid = nursery.fork(command, outputs)
        self._end = os.pidfd_open(self.pid)  # nobody else reaps it, so it is this one

    def __del__(self) -> None:
        os.close(self._end)

    def poll(self) -> int | None:
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        code = self._ended(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
        return code

    def send_signal(self, sig: int) -> None:
        """Signal it; nothing happens where it has ended."""
        if self.poll() is None:
            signal.pidfd_send_signal(self._end, sig)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _ended(self, seconds: float | None) -> int | None:
        """Return the exit code, or None after so many seconds."""
        end = select.poll()
        end.register(self._end, select.POLLIN)
        if self._code is None and end.poll(None if seconds is None else seconds * 1000):
            with self._reaping:
                if self._code is None:
                    self._code = self._nursery.reap(self.pid)
        return self._code


class _Nursery:
    """The nursery as its only parent sees it; it ends when that does."""

    def __init__(self) -> None:
        self._asking = threading.Lock()
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.nursery", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                cwd=_REPOSITORY,
            )

    def fork(self, command: list[str], outputs: tuple[int, int]) -> int:
        """Fork a process with this one's environment and directory; returns its number."""
        request = {"command": command, "environment": dict(os.environ), "directory": os.getcwd()}
        with open(os.devnull, "rb") as nothing:
            return self._ask(request, [nothing.fileno(), *outputs])

    def reap(self, pid: int) -> int:
        """Return the exit code of a process that has ended."""
        return self._ask({"reap": pid}, [])

    def _ask(self, request: dict[str, Any], descriptors: list[int]) -> int:
        with self._asking:
            socket.send_fds(self._connection, [json.dumps(request).encode()], descriptors)
            answer = self._connection.recv(_LONGEST)
        assert answer, "the nursery is gone"
        return int(answer)


@cache
def _nursery() -> _Nursery:
    return _Nursery()


def _wait_for_birth(connection: socket.socket) -> str:
    """Answer requests; returns in each process that is forked, with its program."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(connection, _LONGEST, _STANDARD)
        if not message:
            os._exit(0)
        request = json.loads(message)
        if "reap" in request:
            _, status = os.waitpid(request["reap"], 0)
            connection.send(str(os.waitstatus_to_exitcode(status)).encode())
        elif pid := os.fork():
            connection.send(str(pid).encode())
            for descriptor in descriptors:
                os.close(descriptor)
        else:
            connection.close()
            return _born(request, descriptors)


def _born(request: dict[str, Any], descriptors: Sequence[int]) -> str:
    """Become what was asked for; returns the program."""
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["directory"])
    program, *sys.argv = request["command"]
    return str(program)


def _main() -> None:
    connection = socket.socket(fileno=int(sys.argv[1]))
    for module in _MODULES:
        importlib.import_module(module)
    assert threading.active_count() == 1
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.collect()
    gc.freeze()
    exec(_wait_for_birth(connection), {"__name__": "__main__"})


if __name__ == "__main__":
    _main()
