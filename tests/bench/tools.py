"""The tools side by side, each with the flags that suit it best, and how each is told to work.

A tool keeps the folder ``work`` in the folder ``store`` of a mount; ``backing`` shows the same
folder without the mount. Both may be filled before ``start``, with the same or one of them empty.
"""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from onesync import control
from tests.bench.mounts import Mount
from tests.bench.notified import READY, STAGING_IN, Notified
from tests.bench.usage import Watch
from tests.node import Node, as_a_unit

_PATIENCE_SECONDS = 1800.0
_RSYNC = ("rsync", "--recursive", "--perms", "--times", "--delete")
_RCLONE = ("rclone", "sync", "--modify-window", "1s")
_RCLONE_QUIETLY = ("--config", "/dev/null", "--log-level", "ERROR")
_UNISON = ("-batch", "-ui", "text", "-silent", "-times", "-perms", "0", "-ignoreinodenumbers")
_LSYNCD = """
settings {{ nodaemon = true, statusInterval = 3600, maxProcesses = 8 }}
sync {{ default.rsync, source = "{work}", target = "{store}", delay = 1,
       rsync = {{ archive = false, perms = true, times = true, {more}
                  _extra = {{ "--recursive" }} }} }}
"""


@dataclass(frozen=True)
class Used:
    """What one act of a tool took: seconds, seconds of processor time, bytes of memory."""

    seconds: float
    cpu: float
    memory: int
    note: str = ""

    def after(self, seconds: float) -> Used:
        """Return the same with what came before."""
        return replace(self, seconds=self.seconds + seconds)


@dataclass
class Place:
    """Where one tool works."""

    home: Path
    mount: Mount
    work: Path = field(init=False)
    store: Path = field(init=False)
    backing: Path = field(init=False)

    def __post_init__(self) -> None:
        self.work = self.home / "work"
        self.store = self.mount.path / self.home.name
        self.backing = self.mount.backing / self.home.name
        for folder in (self.work, self.backing):
            folder.mkdir(parents=True, exist_ok=True)


class Tool:
    """A command that is run anew each time; its own watch is what it knows."""

    name = ""

    def __init__(self, place: Place) -> None:
        self.place = place

    def start(self) -> None:
        """Begin, where both sides are the same."""

    def pull(self) -> Used:
        """Bring what is in the store into the empty folder ``work``."""
        return _run(self._command(self.place.store, self.place.work))

    def push(self) -> Used:
        """Bring what changed in ``work`` into the store."""
        return _run(self._command(self.place.work, self.place.store))

    def rest(self) -> None:
        """Wait until the tool does nothing any more by itself."""

    def stop(self) -> None:
        """End, and leave nothing running."""

    def kill(self) -> None:
        """End at once, whatever is left undone."""

    def _command(self, source: Path, target: Path) -> list[str]:
        raise NotImplementedError


def _run(command: list[str], **more: str) -> Used:
    began = time.monotonic()
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env={**os.environ, **more}
    )
    with Watch(process.pid) as watch:
        assert process.stderr is not None
        told = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, f"{command}: {told.decode(errors='replace')}"
    return Used(seconds, usage.ru_utime + usage.ru_stime, watch.memory)


class Rsync(Tool):
    """As West-Life ran it."""

    name = "rsync"

    def _command(self, source: Path, target: Path) -> list[str]:
        return [*_RSYNC, f"{source}/", f"{target}/"]


class RsyncDelta(Tool):
    """With its delta, which it leaves out between local folders unless it is told to."""

    name = "rsync --inplace --no-whole-file"

    def _command(self, source: Path, target: Path) -> list[str]:
        return [*_RSYNC, "--inplace", "--no-whole-file", f"{source}/", f"{target}/"]


class RsyncAppend(Tool):
    """For files that only grew: what is there already is taken for right unseen."""

    name = "rsync --append"

    def _command(self, source: Path, target: Path) -> list[str]:
        return [*_RSYNC, "--append", f"{source}/", f"{target}/"]


class Rclone(Tool):
    name = "rclone"
    at_once = "32"

    def _command(self, source: Path, target: Path) -> list[str]:
        many = ("--transfers", self.at_once, "--checkers", self.at_once)
        return [*_RCLONE, *many, *_RCLONE_QUIETLY, str(source), str(target)]


class RcloneMany(Rclone):
    """With as many calls under way as onesync may have."""

    name = "rclone --transfers 64"
    at_once = "64"


class RcloneUnchecked(RcloneMany):
    """Without reading anew what it copied, to compare it."""

    name = "rclone --transfers 64 --ignore-checksum"

    def _command(self, source: Path, target: Path) -> list[str]:
        return [*super()._command(source, target), "--ignore-checksum"]


class RcloneRenames(Rclone):
    """Which knows what was renamed by its time, and reads nothing for that."""

    name = "rclone --track-renames"

    def _command(self, source: Path, target: Path) -> list[str]:
        strategy = ("--track-renames", "--track-renames-strategy", "modtime,leaf")
        return [*super()._command(source, target), *strategy]


class Unison(Tool):
    name = "unison"

    def start(self) -> None:
        self.push()

    def push(self) -> Used:
        command = ["unison", str(self.place.work), str(self.place.store), *_UNISON]
        return _run(command, UNISON=str(self.place.home / "unison"))

    def pull(self) -> Used:
        return self.push()


class Copy(Tool):
    """``cp``: no tool for this, but what is possible without being clever."""

    name = "cp"

    def _command(self, source: Path, target: Path) -> list[str]:
        return ["cp", "-r", f"{source}/.", f"{target}/"]


class Lsyncd(Tool):
    """With rsync, one second after a change (its default is fifteen)."""

    name = "lsyncd + rsync"
    more = ""

    def __init__(self, place: Place, nice: int = 0) -> None:
        super().__init__(place)
        self._politely = as_a_unit(nice) if nice else []
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        config = self.place.home / "lsyncd.lua"
        places = {"work": self.place.work, "store": self.place.store}
        config.write_text(_LSYNCD.format(**places, more=self.more))
        log = (self.place.home / "lsyncd.log").open("wb")
        command = [*self._politely, "lsyncd", str(config)]
        self._process = subprocess.Popen(command, stdout=log, stderr=log)
        # Its first run compares both sides; it is over when a file travels.
        probe = self.place.work / "probe"
        probe.write_bytes(b"")
        os.utime(probe, (1, 1))
        self.push()
        probe.unlink()
        self.push()

    def push(self) -> Used:
        assert self._process is not None
        began = time.monotonic()
        with Watch(self._process.pid) as watch:
            while _shape(self.place.work) != _shape(self.place.backing):
                assert self._process.poll() is None, "lsyncd ended"
                assert time.monotonic() - began < _PATIENCE_SECONDS, "lsyncd does not end"
                time.sleep(0.1)
            seconds = time.monotonic() - began
        return Used(seconds, watch.cpu, watch.memory)

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(60)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()


class LsyncdDelta(Lsyncd):
    """With rsync's delta, as ``RsyncDelta``."""

    name = "lsyncd + rsync --inplace --no-whole-file"
    more = "inplace = true, whole_file = false,"


def _shape(top: Path) -> set[tuple[str, int, int]]:
    """Return what a tool that looks at sizes and times would compare."""
    found = set()
    for folder, _, files in os.walk(top):
        for name in files:
            with suppress(FileNotFoundError):
                status = os.stat(os.path.join(folder, name))
                path = os.path.relpath(os.path.join(folder, name), top)
                found.add((path, status.st_size, int(status.st_mtime)))
    return found


class Onesync(Tool):
    name = "onesync"

    def __init__(self, place: Place, nice: int = 0, **options: object) -> None:
        super().__init__(place)
        # Of the defaults these differ: a long N, or a heartbeat might come while calls are counted;
        # the lock's settle time, 2 N, is left out, as is said beside each stage-in; metrics are
        # served on any port. What else tests set is set back.
        settings = {
            "mount__require_fuse": True,
            "mount__io_timeout_seconds": 600,
            "lock__settle_seconds": 0,
            "batch__settle_seconds": 2,
            "batch__min_interval_seconds": 1,
            **options,
        }
        self.node = Node(place.home, place.store, **settings)
        self._notified = Notified()
        environment = ["env", f"NOTIFY_SOCKET={self._notified.address}"]
        self.node.within = [*environment, *(as_a_unit(nice) if nice else [])]

    def start(self) -> None:
        self.node.start()
        self._told(READY)
        self.rest()

    def pull(self) -> Used:
        began = time.monotonic()
        self.node.start()
        with Watch(self.process) as watch:
            claimed = self._told(STAGING_IN) - began
            seconds = self._told(READY) - began
        note = f"{claimed:.1f} s of it until the folder was claimed, settle time left out"
        return Used(seconds, watch.cpu, watch.memory, note)

    def push(self) -> Used:
        began = time.monotonic()
        with Watch(self.process) as watch:
            self._flush()
            seconds = time.monotonic() - began
        return Used(seconds, watch.cpu, watch.memory)

    def rest(self) -> None:
        """Wait until what was pushed is verified, which is the last that the mount sees of it."""
        deadline = time.monotonic() + 120
        quiet = 0
        while quiet < 2:
            assert time.monotonic() < deadline, "it never rests"
            before = self.place.mount.counts()
            self._flush()
            quiet = quiet + 1 if self.place.mount.counts() == before else 0

    def kill(self) -> None:
        assert self.node.process is not None
        self.node.process.kill()
        self.node.process.wait()

    def stop(self) -> None:
        if self.node.running():
            assert self.node.process is not None
            self.node.process.terminate()
            assert self.node.process.wait(300) == 0, self.node.log()
        self._notified.close()

    @property
    def process(self) -> int:
        assert self.node.process is not None
        return self.node.process.pid

    def _told(self, what: str) -> float:
        try:
            return self._notified.wait(what, _PATIENCE_SECONDS, self.node.running)
        except TimeoutError as error:
            raise AssertionError(f"{error}\n{self.node.log()}") from error

    def _flush(self) -> None:
        reply = control.ask(self.node.home / "run" / "control.sock", "flush", _PATIENCE_SECONDS)
        assert reply["ok"], reply
