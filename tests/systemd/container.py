"""A node with a real systemd: Debian's, booted in systemd-nspawn, with this checkout's onesync.

The root is made once and cached; each boot sees it through an overlay in memory, so that nothing of
one test is left for the next. What must survive a reboot lies in directories of the test's own. The
interpreter and the virtual environment are the host's.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from types import TracebackType

from tests.systemd import nspawn
from tests.systemd.nspawn import leader

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
_GONE_SECONDS = 10.0
_GROUPS = tuple(Path("/sys/fs/cgroup", name) for name in ("systemd", "unified", "."))
# Of its own, or the nodes of this machine would share what they put their units into, and the
# filters of addresses with it.
_IN_ITS_GROUP = """
for group in "$@"; do shift; [ "$group" != -- ] || break
mkdir -p "$group"; echo $$ > "$group/cgroup.procs"; done
exec "$@"
"""
_REBOOT = 133
"""How nspawn ends when the node asks for a reboot and somebody else starts it again."""

# Not at its own path, which may lie where the node mounts something else.
_CHECKOUT = "/opt/checkout"
_GENERATORS = "/usr/lib/systemd/system-generators"
# Nor in somebody's home, where no service may look.
_INTERPRETER = "/usr" if sys.base_prefix == "/usr" else "/opt/python"
PYTHON = f"{_INTERPRETER}/bin/python3"
_LIBRARY = f"python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
_PATH = f"{_CHECKOUT}/daemon:{_CHECKOUT}/.venv/lib/{_LIBRARY}"

PROGRAM = f"""#!/bin/sh
PYTHONPATH={_PATH} exec {PYTHON} -m onesync.program "$@"
"""

ONECLIENT = f"""#!/bin/sh
export ONEDATA_STANDIN=/srv/provider PYTHONPATH={_PATH}
cd {_CHECKOUT} && exec {PYTHON} -m tests.standin.oneclient "$@"
"""

USERS = {"onesync": 990, "scipion": 1500}
"""Those of a node: the unit's own, and a workload's."""
TOKEN = "token-that-is-secret"

CONFIGURATION = """
working_dir = "/srv/work"
onedata_dir = "/mnt/onedata/project"
[oneclient]
host = "provider.test"
mount_point = "/mnt/onedata"
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


class Container:
    """One node; ``home`` holds what survives its boots."""

    def __init__(
        self,
        home: Path,
        *programs: Path,
        user: str = "onesync",
        provider: Path | None = None,
    ) -> None:
        """``programs`` are this machine's that the node has, too; ``user`` owns its directories.

        ``provider`` is another node's, or one of its own in ``home``.
        """
        self.home = home
        self._programs = programs
        self._user = USERS[user]
        self.provider = provider or home / "provider"
        self.backing = self.provider / "backing"
        self.work = home / "work"
        self.units = home / "image" / "etc" / "systemd" / "system"
        made = (self.work, home / "state", home / "etc", home / "journal", self.units)
        for path in made:
            path.mkdir(parents=True)
        (self.backing / "project").mkdir(parents=True, exist_ok=True)
        for path in (self.backing, self.backing / "project", self.work):
            self.give(path)
        for unit in (REPOSITORY / "systemd").glob("*.[st][ea]r*"):
            shutil.copy(unit, self.units)
        self.put_token(TOKEN)
        (self.provider / "token").write_text(TOKEN)
        (home / "etc" / "p.toml").write_text(CONFIGURATION)
        lines = (f"u {name} {number}" for name, number in USERS.items())
        (home / "sysusers").write_text("\n".join(lines) + "\n")
        for name, text in (("onesync", PROGRAM), ("oneclient", ONECLIENT)):
            (home / name).write_text(text)
            (home / name).chmod(0o755)
        # The machine's own may be root's alone.
        os.mknod(home / "fuse", stat.S_IFCHR | 0o666, os.makedev(10, 229))
        (home / "fuse").chmod(0o666)
        self._process: subprocess.Popen[bytes] | None = None

    def give(self, path: Path) -> None:
        """Let a file be the user's, as it is for whoever puts it there in the node."""
        os.chown(path, self._user, self._user)

    def put_token(self, token: str, name: str = "p") -> None:
        """Give an instance its access token, as an operator does."""
        place = self.home / "etc" / f"{name}.token"
        place.write_text(token + "\n")
        place.chmod(0o600)

    def enable(self, *units: str) -> None:
        """Start units with every boot, as an image builder says it."""
        words = [f"--root={self.home / 'image'}", "enable", *(units or ("onesync@p.service",))]
        subprocess.run(["systemctl", "--quiet", *words], check=True)

    def drop_in(self, text: str) -> None:
        """Change the unit as an operator does."""
        place = self.units / "onesync@.service.d"
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
            first = leader(self._process)
            if first is not None:
                os.kill(first, 9)
            self._process.terminate()
            self._process.wait(30)
        for group in self._groups():
            self._remove(group)

    def _groups(self) -> list[Path]:
        """Return where the node's processes are, in each hierarchy that systemd uses."""
        name = f"onesync-test-{os.getpid()}-{self.home.parent.name}-{self.home.name}"
        return [root / name for root in _GROUPS if (root / "cgroup.procs").exists()]

    def _remove(self, group: Path) -> None:
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

    def boot(self) -> None:
        """Boot, and wait until units can be started."""
        binds = [
            f"--bind={self.provider}:/srv/provider",
            f"--bind={self.work}:/srv/work",
            f"--bind={self.home / 'state'}:/var/lib/onesync",
            f"--bind={self.home / 'journal'}:/var/log/journal",
            f"--bind-ro={self.home / 'etc'}:/etc/onesync",
            f"--bind-ro={self.units}:/etc/systemd/system",
            f"--bind-ro={REPOSITORY}:{_CHECKOUT}",
            f"--bind-ro={self.home / 'onesync'}:/usr/bin/onesync",
            f"--bind-ro={self.home / 'oneclient'}:/usr/bin/oneclient",
            f"--bind-ro={self.home / 'sysusers'}:/usr/lib/sysusers.d/onesync.conf",
            f"--bind-ro={REPOSITORY / 'systemd' / 'onesync-generator'}:{_GENERATORS}/onesync",
            f"--bind={self.home / 'fuse'}:/dev/fuse",
            *(f"--bind-ro={program}" for program in self._programs),
        ]
        if sys.base_prefix != "/usr":
            binds.append(f"--bind-ro={sys.base_prefix}:{_INTERPRETER}")
            library = Path(sys.base_prefix, "lib", sysconfig.get_config_var("INSTSONAME"))
            if library.suffix != ".a":
                binds.append(f"--bind-ro={library}:/usr/lib/{library.name}")
        with (self.home / "console").open("ab") as console:
            self._process = subprocess.Popen(
                [
                    *("sh", "-euc", _IN_ITS_GROUP, "sh", *map(str, self._groups()), "--"),
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
                    "--system-call-filter=bpf",  # how systemd filters a unit's addresses
                    "--kill-signal=SIGRTMIN+3",
                    *binds,
                    "--boot",
                    f"--directory={nspawn.root(PACKAGES, 'mnt/onedata')}",
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
        assert self._process is not None
        first = leader(self._process)
        if first is None:
            return subprocess.CompletedProcess(command, 255, "", "the node is down")
        return subprocess.run(
            ["nsenter", "-t", str(first), "-a", *command],
            capture_output=True,
            text=True,
            check=check,
            timeout=240,
        )

    def slow_down(self, seconds: float) -> None:
        """Let every call on the node's mount take this much longer."""
        self.weather("latency", seconds=seconds)

    def weather(self, verb: str, *, mount: str = "onedata", **arguments: object) -> None:
        """Tell the node's stand-in for OneData how to behave (``tests.standin.mounted``)."""
        script = (
            "import socket, sys\n"
            "s = socket.socket(socket.AF_UNIX)\n"
            "s.connect(f'/tmp/onedata-{sys.argv[2]}')\n"
            "s.sendall(sys.argv[1].encode() + b'\\n')\n"
            "answer = s.recv(1000)\n"
            "assert b'refused' not in answer, answer\n"
        )
        request = json.dumps({"verb": verb, **arguments})
        self.run(PYTHON, "-c", script, request, mount, check=True)

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
        return self.run(PYTHON, "-c", script, url).stdout

    def show(self, name: str, unit: str = "onesync@p.service") -> str:
        """Return a unit's property."""
        return self.run("systemctl", "show", "--value", "-p", name, unit).stdout.strip()

    def systemctl(self, *words: str) -> None:
        """Run systemctl, which must succeed."""
        done = self.run("systemctl", *words)
        assert done.returncode == 0, done.stderr + self.journal()

    def journal(self, unit: str = "onesync@p.service") -> str:
        return self.run("journalctl", "--no-pager", "-u", unit).stdout

    def last_journal(self) -> list[str]:
        """Return the messages of all boots, in their order, also of a node that is down."""
        words = ["journalctl", "--merge", "-o", "cat", "-D", str(self.home / "journal")]
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()

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
