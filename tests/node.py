"""A node for tests: the program as a process, with directories of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from onesync.control import NotRunning, StatusFile, ask
from tests import nursery

SOON = 30.0
DEFAULTS: dict[str, object] = {
    "mount__require_fuse": False,
    "mount__io_timeout_seconds": 20,
    "batch__settle_seconds": 0.1,
    "batch__min_interval_seconds": 0.1,
    "lock__settle_seconds": 0,
    "metrics__listen": "127.0.0.1:0",
}


def toml(options: dict[str, object]) -> str:
    """Return a TOML file; ``section__key`` goes into its section."""
    sections: dict[str, list[str]] = {"": []}
    for name, value in options.items():
        section, _, key = name.rpartition("__")
        text = json.dumps(str(value) if isinstance(value, Path) else value)
        sections.setdefault(section, []).append(f"{key} = {text}")
    parts = [(f"[{name}]\n" if name else "") + "\n".join(keys) for name, keys in sections.items()]
    return "\n".join(parts) + "\n"


def as_a_unit(nice: int) -> list[str]:
    """Return the words that run a command with the scheduling of the unit."""
    return ["chrt", "--batch", "0", "nice", "-n", str(nice)]


_DYING = """
import os, signal, importlib

def die_at(module, owner, name, calls):
    place = importlib.import_module(module)
    place = getattr(place, owner) if owner else place
    real, left = getattr(place, name), [calls]
    def counted(*arguments):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments)
    setattr(place, name, counted)
"""


class Node:
    """One node's onesync; ``store`` is the OneData folder as this node sees it.

    Where ``is_forked`` its processes come from the nursery: half a second earlier. The daemon is
    run by the words ``within``, if any.
    """

    is_forked = False

    def __init__(self, home: Path, store: Path, **options: object) -> None:
        """``options`` are configuration keys, ``section__key`` in a section, over DEFAULTS."""
        self.home = home
        self.work = home / "work"
        self.store = store
        for name in ("work", "state", "run"):
            (home / name).mkdir(parents=True, exist_ok=True)
        self.config = home / "onesync.toml"
        self.configure(**options)
        self.process: nursery.Process | None = None
        self.within: list[str] = []

    def configure(self, **options: object) -> None:
        """Write the configuration anew."""
        places = {
            "working_dir": self.work,
            "onedata_dir": self.store,
            "state_dir": self.home / "state",
            "runtime_dir": self.home / "run",
        }
        self.config.write_text(toml({**places, **DEFAULTS, **options}))

    def start(self) -> None:
        """Start the program and return at once."""
        self.start_after("")

    def start_after(self, before: str) -> None:
        """Start the program, in which ``before`` is run first."""
        with (self.home / "log").open("ab") as log:
            self.process = self._started(("run",), log.fileno(), log.fileno(), before)

    def start_dying(self, module: str, owner: str, name: str, calls: int) -> None:
        """Start a program that is killed when it calls a function for the ``calls``-th time."""
        self.start_after(f"{_DYING}\ndie_at({module!r}, {owner!r}, {name!r}, {calls})")

    def _started(
        self, words: tuple[str, ...], out: int, error: int, before: str = ""
    ) -> nursery.Process:
        arguments = [*words, "--config", str(self.config)]
        within = self.within if words == ("run",) else []
        if self.is_forked and not within:
            return nursery.start("onesync.program", arguments, out, error, before=before)
        program = f"{before}\nfrom onesync.program import main\nmain()"
        way = ["-c", program] if before else ["-m", "onesync.program"]
        command = [*within, sys.executable, *way, *arguments]
        return subprocess.Popen(command, stdout=out, stderr=error)

    def wait(self) -> int:
        """Wait for the program's own end and return the exit code."""
        assert self.process is not None
        return self.process.wait(SOON)

    def deploy(self) -> None:
        """Start, and wait until it syncs."""
        self.start()
        self.wait_for_phase("syncing")

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the program to its end."""
        with TemporaryFile("w+") as out, TemporaryFile("w+") as error:
            process = self._started(words, out.fileno(), error.fileno())
            try:
                code = process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
            out.seek(0)
            error.seek(0)
            return subprocess.CompletedProcess(words, code, out.read(), error.read())

    def status(self) -> dict[str, Any]:
        """Return what the daemon says of itself, or has left."""
        try:
            return ask(self.home / "run" / "control.sock", "status", SOON)
        except NotRunning:
            return StatusFile(self.home / "state").last_word()

    def wait_for_phase(self, phase: str) -> None:
        """Wait for a phase, or fail with the log."""
        deadline = time.monotonic() + SOON
        while self.status()["phase"] != phase or not self.running():
            assert time.monotonic() < deadline, self.log()
            assert self.running(), self.log()
            time.sleep(0.05)

    def wait_until(self, condition: Callable[[], object], seconds: float = SOON) -> float:
        """Wait for a condition, or fail with the log; returns how many seconds it took."""
        began = time.monotonic()
        while not condition():
            assert time.monotonic() < began + seconds, self.log()
            time.sleep(0.02)
        return time.monotonic() - began

    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def flush(self) -> int:
        """Return the exit code of ``onesync flush``."""
        return self.command("flush").returncode

    def refusal(self) -> int:
        """Start, and return the exit code of a program that must not go on."""
        self.start()
        assert self.process is not None
        return self.process.wait(SOON)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(SOON)

    def pause(self) -> None:
        """Let the program stand still; it does when this returns."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        deadline = time.monotonic() + SOON
        while not _stands_still(self.process.pid):
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.005)

    def go_on(self) -> None:
        """Let it go on."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def log(self) -> str:
        return (self.home / "log").read_text(errors="replace")


def _stands_still(pid: int) -> bool:
    """Whether each thread of a process is stopped."""
    states = []
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # it ended just now
            states.append((thread / "stat").read_text().rpartition(") ")[2][0])
    return set(states) == {"T"}


def picture(root: Path) -> dict[bytes, tuple[object, ...]]:
    """Return all that must survive: kinds, bytes, link targets, modes, nanosecond times."""
    found: dict[bytes, tuple[object, ...]] = {}
    top = os.fsencode(root)
    for folder, directories, files in os.walk(top):
        for name in directories + files:
            path = os.path.join(folder, name)
            status = os.lstat(path)
            key = os.path.relpath(path, top)
            if os.path.islink(path):
                found[key] = ("link", os.readlink(path))
            elif os.path.isdir(path):
                found[key] = ("dir", status.st_mode & 0o777, status.st_mtime_ns)
            else:
                with open(path, "rb") as file:
                    content = file.read()
                found[key] = ("file", content, status.st_mode & 0o777, status.st_mtime_ns)
    return found
