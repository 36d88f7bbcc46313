"""What all nodes booted in systemd-nspawn share: Debian's root, the boot, and the way in.

The root is made once and cached; each boot sees it through an overlay in memory, so that nothing of
one test is left for the next. What must survive a reboot lies in directories of the test's own.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import stat
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

REPOSITORY = Path(__file__).parents[2]
UNIT = "onesync@p.service"
_ROOTS = Path("/var/cache/onesync-tests")
_WAIT_SECONDS = 90.0
_GONE_SECONDS = 10.0
_REBOOT = 133
"""How nspawn ends when the node asks for a reboot and somebody else starts it again."""
_GROUPS = tuple(Path("/sys/fs/cgroup", name) for name in ("systemd", "unified", "."))
# Of its own, or the nodes of this machine would share what they put their units into, and the
# filters of addresses with it.
_IN_ITS_GROUP = """
for group in "$@"; do shift; [ "$group" != -- ] || break
mkdir -p "$group"; echo $$ > "$group/cgroup.procs"; done
exec "$@"
"""
_OPTIONS = (
    *("--quiet", "--register=no", "--keep-unit", "--private-network", "--console=pipe"),
    *("--volatile=overlay", "--kill-signal=SIGRTMIN+3", "--capability=CAP_SYS_ADMIN"),
    "--property=DeviceAllow=/dev/fuse rw",
    "--system-call-filter=bpf",  # how systemd filters a unit's addresses
)
_ENVIRONMENT = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
    "DEBIAN_FRONTEND": "noninteractive",
}


def suite() -> str:
    """Return the nodes' Debian: this machine's, or what ONESYNC_SUITE names."""
    if named := os.environ.get("ONESYNC_SUITE"):
        return named
    for line in Path("/etc/os-release").read_text().splitlines():
        if line.startswith("VERSION_CODENAME="):
            return line.partition("=")[2]
    raise AssertionError("not a Debian")


def root(packages: Sequence[str], *directories: str) -> Path:
    """Return a Debian with ``packages`` and empty ``directories``, cached; the first call makes it.

    One of the test processes makes it, the others wait.
    """
    key = hashlib.sha256(" ".join((*packages, *directories)).encode()).hexdigest()[:12]
    path = _ROOTS / f"{suite()}-{key}"
    _ROOTS.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            _make(path, packages, directories)
    return path


def _make(path: Path, packages: Sequence[str], directories: Sequence[str]) -> None:
    making = path.with_suffix(".making")
    shutil.rmtree(making, ignore_errors=True)
    options = ["--quiet", "--variant=minbase", f"--include={','.join(packages)}"]
    subprocess.run(["mmdebstrap", *options, suite(), making], check=True)
    (making / "etc/machine-id").write_text("")
    for name in directories:
        (making / name).mkdir(parents=True)
    making.rename(path)


def leader(process: subprocess.Popen[bytes]) -> int | None:
    """Return the PID 1 that an nspawn has started, as this machine sees it."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    try:
        found = children.read_text().split()
    except OSError:
        return None
    return int(found[0]) if found else None


class Machine(ABC):
    """One node; ``home`` holds what survives its boots. Whoever makes one says what is in it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        home.mkdir(parents=True, exist_ok=True)
        # The machine's own may be root's alone.
        os.mknod(home / "fuse", stat.S_IFCHR | 0o666, os.makedev(10, 229))
        (home / "fuse").chmod(0o666)
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def image(self) -> Path:
        """Return what is booted."""

    @abstractmethod
    def binds(self) -> list[str]:
        """Return nspawn's options for what the node shows of this machine."""

    def __enter__(self) -> Self:
        self.boot()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process is not None
        if self._process.poll() is None:
            if (first := leader(self._process)) is not None:
                os.kill(first, 9)
            self._process.terminate()
            self._process.wait(30)
        for group in self._groups():
            _remove(group)

    def _groups(self) -> list[Path]:
        """Return where the node's processes are, in each hierarchy that systemd uses."""
        name = f"onesync-test-{os.getpid()}-{self.home.parent.name}-{self.home.name}"
        return [root / name for root in _GROUPS if (root / "cgroup.procs").exists()]

    def boot(self) -> None:
        """Boot, and wait until units can be started."""
        words = [
            *("sh", "-euc", _IN_ITS_GROUP, "sh", *map(str, self._groups()), "--"),
            *("systemd-nspawn", *_OPTIONS, f"--machine=onesync-test-{os.getpid()}"),
            *(f"--bind={self.home / 'fuse'}:/dev/fuse", *self.binds()),
            *("--boot", f"--directory={self.image()}"),
        ]
        with (self.home / "console").open("ab") as console:
            self._process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=console, stderr=console
            )
        self.wait_for(lambda: self.state() in ("running", "degraded"), "the node to boot")

    def state(self) -> str:
        return self.run("systemctl", "is-system-running").stdout.strip()

    def run(
        self,
        *command: str,
        check: bool = False,
        text: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the node, with ``text`` on its standard input."""
        assert self._process is not None
        first = leader(self._process)
        if first is None:
            return subprocess.CompletedProcess(command, 255, "", "the node is down")
        done = subprocess.run(
            ["nsenter", "-t", str(first), "-a", *command],
            input=text,
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
            env={**_ENVIRONMENT, **(environment or {})},
        )
        assert not check or done.returncode == 0, (done.args, done.stdout, done.stderr)
        return done

    def systemctl(self, *words: str) -> None:
        """Run systemctl, which must succeed."""
        done = self.run("systemctl", *words)
        assert done.returncode == 0, done.stderr + self.journal()

    def show(self, name: str, unit: str = UNIT) -> str:
        """Return a unit's property."""
        return self.run("systemctl", "show", "--value", "-p", name, unit).stdout.strip()

    def journal(self, unit: str = UNIT, *words: str) -> str:
        return self.run("journalctl", "--no-pager", "-u", unit, *words).stdout

    def wait_for_power_off(self) -> None:
        """Wait until the node has shut down."""
        self._wait_for_end(0)

    def wait_for_reboot(self) -> None:
        """Wait until the node has shut down, and boot it again."""
        self._wait_for_end(_REBOOT)
        self.boot()

    def _wait_for_end(self, code: int) -> None:
        assert self._process is not None
        assert self._process.wait(120) == code, self._console()

    def wait_for(self, condition: Callable[..., object], what: str) -> None:
        """Wait until ``condition()``, or fail with what the node said."""
        deadline = time.monotonic() + _WAIT_SECONDS
        while not condition():
            late = f"waited for {what} in vain\n{self.journal()}\n{self._console()}"
            assert time.monotonic() < deadline, late
            time.sleep(0.05)

    def _console(self) -> str:
        return (self.home / "console").read_text(errors="replace")


def _remove(group: Path) -> None:
    """Remove a group and those in it, as soon as the kernel has buried who was there."""
    deadline = time.monotonic() + _GONE_SECONDS
    while group.exists():
        try:
            for place, _, _ in os.walk(group, topdown=False):
                os.rmdir(place)
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.05)
