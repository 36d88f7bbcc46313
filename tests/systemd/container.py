"""A node with a real systemd: Debian's, booted in systemd-nspawn, with this checkout's onesync.

The root is made once and cached; each boot sees it through an overlay in memory, so that nothing of
one test is left for the next. What must survive a reboot lies in directories of the test's own. The
interpreter and the virtual environment are the host's.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

REPOSITORY = Path(__file__).parents[2]
_PACKAGES = ("ca-certificates", "dbus", "fuse3", "procps", "python3", "systemd", "systemd-sysv")
# What an interpreter that is not Debian's was linked with.
_LIBRARIES = (
    "libbz2-1.0",
    "libffi8",
    "liblzma5",
    "libreadline8",
    "libsqlite3-0",
    "libssl3",
    "zlib1g",
)
PACKAGES = _PACKAGES if sys.base_prefix == "/usr" else _PACKAGES + _LIBRARIES
_TOOLS = ("mmdebstrap", "systemd-nspawn", "nsenter")
_BOOT_SECONDS = 60.0
_REBOOT = 133
"""How nspawn ends when the node asks for a reboot and somebody else starts it again."""

# Not at its own path, which may lie where the node mounts something else.
_CHECKOUT = "/opt/checkout"
_PYTHON = f"{sys.base_prefix}/bin/python3"
_LIBRARY = f"python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
_PATH = f"{_CHECKOUT}/daemon:{_CHECKOUT}/.venv/lib/{_LIBRARY}"

PROGRAM = f"""#!/bin/sh
PYTHONPATH={_PATH} exec {_PYTHON} -m onesync.cli "$@"
"""

ONECLIENT = f"""
[Unit]
Description=stand-in for oneclient
[Service]
WorkingDirectory={_CHECKOUT}
Environment=PYTHONPATH={_PATH}
ExecStart={_PYTHON} -m tests.standin.onedata /srv/backing /mnt/onedata /run/standin
ExecStartPost=/bin/sh -c 'until mountpoint -q /mnt/onedata; do sleep 0.05; done'
ExecStop=/bin/fusermount3 -u /mnt/onedata
"""

CONFIGURATION = """
working_dir = "/srv/work"
onedata_dir = "/mnt/onedata/project"
[mount]
io_timeout_seconds = 10
[batch]
settle_seconds = 0.1
min_interval_seconds = 0.1
[lock]
settle_seconds = 0
"""


def missing() -> str | None:
    """Return why this machine cannot boot a node, or None."""
    if os.geteuid() != 0:
        return "needs root"
    absent = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if absent:
        return f"needs {', '.join(absent)}"
    return None if Path("/dev/fuse").exists() else "needs /dev/fuse"


def root() -> Path:
    """Return the cached Debian root; the first call makes it."""
    suite = _suite()
    key = hashlib.sha256(" ".join((suite, *PACKAGES)).encode()).hexdigest()[:12]
    path = Path("/var/cache/onesync-tests") / f"{suite}-{key}"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        making = path.with_suffix(".making")
        shutil.rmtree(making, ignore_errors=True)
        options = ["--variant=minbase", f"--include={','.join(PACKAGES)}"]
        subprocess.run(["mmdebstrap", *options, suite, str(making)], check=True)
        (making / "mnt/onedata").mkdir(parents=True)
        (making / "etc/machine-id").write_text("")
        making.rename(path)
    return path


def _suite() -> str:
    for line in Path("/etc/os-release").read_text().splitlines():
        if line.startswith("VERSION_CODENAME="):
            return line.partition("=")[2]
    raise AssertionError("not a Debian")


class Container:
    """One node; ``home`` holds what survives its boots."""

    def __init__(self, home: Path, *programs: Path) -> None:
        """``programs`` are this machine's that the node has, too."""
        self.home = home
        self._programs = programs
        self.backing = home / "backing"
        self.work = home / "work"
        units = home / "units"
        for path in (self.backing / "project", self.work, home / "state", home / "etc", units):
            path.mkdir(parents=True)
        (units / "multi-user.target.wants").mkdir()
        shutil.copy(REPOSITORY / "systemd" / "onesync@.service", units)
        (units / "oneclient@.service").write_text(ONECLIENT)
        (home / "etc" / "p.toml").write_text(CONFIGURATION)
        (home / "onesync").write_text(PROGRAM)
        (home / "onesync").chmod(0o755)
        self._process: subprocess.Popen[bytes] | None = None

    def enable(self) -> None:
        """Start the deployment with every boot."""
        for name in ("oneclient", "onesync"):
            link = self.home / "units" / "multi-user.target.wants" / f"{name}@p.service"
            link.symlink_to(f"../{name}@.service")

    def drop_in(self, text: str) -> None:
        """Change the unit as an operator does."""
        place = self.home / "units" / "onesync@.service.d"
        place.mkdir(exist_ok=True)
        (place / "test.conf").write_text(text)

    def __enter__(self) -> Container:
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
            leader = self._leader()
            if leader is not None:
                os.kill(leader, 9)
            self._process.terminate()
            self._process.wait(30)

    def boot(self) -> None:
        """Boot, and wait until units can be started."""
        binds = [
            f"--bind={self.backing}:/srv/backing",
            f"--bind={self.work}:/srv/work",
            f"--bind={self.home / 'state'}:/var/lib/onesync",
            f"--bind-ro={self.home / 'etc'}:/etc/onesync",
            f"--bind-ro={self.home / 'units'}:/etc/systemd/system",
            f"--bind-ro={REPOSITORY}:{_CHECKOUT}",
            f"--bind-ro={self.home / 'onesync'}:/usr/bin/onesync",
            "--bind=/dev/fuse",
            *(f"--bind-ro={program}" for program in self._programs),
        ]
        if sys.base_prefix != "/usr":
            binds.append(f"--bind-ro={sys.base_prefix}")
        with (self.home / "console").open("ab") as console:
            self._process = subprocess.Popen(
                [
                    "systemd-nspawn",
                    "--quiet",
                    "--register=no",
                    "--keep-unit",
                    "--private-network",
                    "--volatile=overlay",
                    "--console=pipe",
                    f"--machine=onesync-test-{os.getpid()}",
                    "--property=DeviceAllow=/dev/fuse rw",
                    "--capability=CAP_SYS_ADMIN",
                    "--kill-signal=SIGRTMIN+3",
                    *binds,
                    "--boot",
                    f"--directory={root()}",
                ],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
            )
        self.wait_for(lambda: self.state() in ("running", "degraded"), "the node to boot")

    def state(self) -> str:
        return self.run("systemctl", "is-system-running").stdout.strip()

    def run(self, *command: str, check: bool = False) -> subprocess.CompletedProcess[str]:
        """Run a command in the node."""
        leader = self._leader()
        if leader is None:
            return subprocess.CompletedProcess(command, 255, "", "the node is down")
        return subprocess.run(
            ["nsenter", "-t", str(leader), "-a", *command],
            capture_output=True,
            text=True,
            check=check,
            timeout=240,
        )

    def slow_down(self, seconds: float) -> None:
        """Let every call on the node's mount take this much longer."""
        self.weather("latency", seconds=seconds)

    def weather(self, verb: str, **arguments: object) -> None:
        """Tell the node's stand-in for OneData how to behave (``tests.standin.mounted``)."""
        script = (
            "import socket, sys\n"
            "s = socket.socket(socket.AF_UNIX)\n"
            "s.connect('/run/standin')\n"
            "s.sendall(sys.argv[1].encode() + b'\\n')\n"
            "s.recv(100)\n"
        )
        request = json.dumps({"verb": verb, **arguments})
        self.run(_PYTHON, "-c", script, request, check=True)

    def configure_timeout(self, seconds: float) -> None:
        """Set how long a call on the mount may take."""
        place = self.home / "etc" / "p.toml"
        old = "io_timeout_seconds = 10"
        place.write_text(place.read_text().replace(old, f"io_timeout_seconds = {seconds}"))

    def configure(self, text: str) -> None:
        """Add lines to the instance's configuration."""
        place = self.home / "etc" / "p.toml"
        place.write_text(place.read_text() + text)

    def fetch(self, url: str) -> str:
        """Return what an address of the node itself answers; "" where nobody does."""
        script = (
            "import sys, urllib.request\n"
            "print(urllib.request.urlopen(sys.argv[1], timeout=10).read().decode())\n"
        )
        return self.run(_PYTHON, "-c", script, url).stdout

    def show(self, name: str, unit: str = "onesync@p.service") -> str:
        """Return a unit's property."""
        return self.run("systemctl", "show", "--value", "-p", name, unit).stdout.strip()

    def systemctl(self, *words: str) -> None:
        """Run systemctl, which must succeed."""
        done = self.run("systemctl", *words)
        assert done.returncode == 0, done.stderr + self.journal()

    def journal(self) -> str:
        return self.run("journalctl", "--no-pager", "-u", "onesync@p.service").stdout

    def wait_for_power_off(self) -> None:
        """Wait until the node has shut down."""
        self._wait_for_end(0)

    def wait_for_reboot(self) -> None:
        """Wait until the node has shut down, and boot it again."""
        self._wait_for_end(_REBOOT)
        self.boot()

    def _wait_for_end(self, code: int) -> None:
        assert self._process is not None
        assert self._process.wait(120) == code, (self.home / "console").read_text()

    def wait_for(self, condition: object, what: str) -> None:
        """Wait until ``condition()``, or fail with what the node said."""
        assert callable(condition)
        deadline = time.monotonic() + _BOOT_SECONDS
        while not condition():
            assert time.monotonic() < deadline, f"waited for {what} in vain\n{self.journal()}\n" + (
                self.home / "console"
            ).read_text(errors="replace")
            time.sleep(0.05)

    def _leader(self) -> int | None:
        """Return the node's PID 1 as the host sees it."""
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        try:
            found = children.read_text().split()
        except OSError:
            return None
        return int(found[0]) if found else None
