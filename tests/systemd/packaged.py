"""A node made from nothing but Debian and the package: no checkout, none of this machine's Python.

OneData is the pass-through in C, which ``control`` slows down and holds. What the node is made of
lies in memory, and is gone with it.
"""

from __future__ import annotations

import os
import shutil
import stat
import struct
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.standin.passthrough import built
from tests.systemd import nspawn
from tests.systemd.nspawn import leader, suite

REPOSITORY = Path(__file__).parents[2]
PACKAGES = (
    *("dbus", "fuse3", "man-db", "needrestart", "procps", "python3"),
    *("systemd", "systemd-sysv", "cron", "rsync", "fish", "zsh"),
)
_WAIT_SECONDS = 90.0
_VERSION = "__version__ = "
UNIT = "onesync@p.service"

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
_MOUNT = """
[Service]
ExecStart=/usr/local/bin/passthrough /srv/backing /srv/control /mnt/onedata -f -o allow_other
ExecStartPost=/bin/sh -c 'until mountpoint -q /mnt/onedata; do sleep 0.05; done'
"""


def package() -> Path:
    """Return the newest package for the nodes' Debian."""
    release = {"bookworm": "deb12", "trixie": "deb13"}[suite()]
    found = (REPOSITORY / ".run" / "deb").glob(f"onesync_*~{release}u*.deb")
    return max(found, key=lambda path: path.stat().st_mtime)


def changed(old: Path, new: Path, version: str, **scripts: str) -> Path:
    """Make a package of another version, which the program tells; ``scripts`` come in addition."""
    tree = new.with_suffix(".tree")
    subprocess.run(["dpkg-deb", "-R", old, tree], check=True)
    control = tree / "DEBIAN" / "control"
    lines = control.read_text().splitlines()
    control.write_text(
        "".join(f"Version: {version}\n" if x.startswith("Version:") else f"{x}\n" for x in lines)
    )
    (module,) = tree.glob("usr/lib/onesync/lib/python3*/site-packages/onesync/__init__.py")
    text = module.read_text()
    before = next(line for line in text.splitlines() if line.startswith(_VERSION))
    module.write_text(text.replace(before, f'{_VERSION}"{version}"'))
    for name, script in scripts.items():
        place = tree / "DEBIAN" / name
        place.write_text(script)
        place.chmod(0o755)
    subprocess.run(["dpkg-deb", "-Znone", "--root-owner-group", "-b", tree, new], check=True)
    shutil.rmtree(tree)
    return new


def root(*more: str) -> Path:
    """Return a node's Debian, with ``more`` packages."""
    return nspawn.root((*PACKAGES, *more))


class Node:
    """One node; ``home`` has its OneData folder, its working directory and the packages."""

    def __init__(
        self, home: Path, *, image: Path | None = None, binds: Mapping[str, Path] | None = None
    ) -> None:
        """``binds`` are its places that show files or directories of ours."""
        self.home = home
        self._image = image or root()
        self._binds = binds or {}
        self.project = home / "backing" / "project"
        self.work = home / "work"
        self.packages = home / "packages"
        for path in (self.project, self.work, self.packages):
            path.mkdir(parents=True)
        self.control = home / "control"
        self.control.write_bytes(bytes(4096))
        self._program = built(home)
        # The machine's own may be root's alone.
        os.mknod(home / "fuse", stat.S_IFCHR | 0o666, os.makedev(10, 229))
        (home / "fuse").chmod(0o666)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        binds = [
            f"--bind={self.home / 'backing'}:/srv/backing",
            f"--bind={self.work}:/srv/work",
            f"--bind={self.control}:/srv/control",
            f"--bind-ro={self.packages}:/srv/packages",
            f"--bind-ro={self._program}:/usr/local/bin/passthrough",
            f"--bind={self.home / 'fuse'}:/dev/fuse",
            *(f"--bind-ro={ours}:{place}" for place, ours in self._binds.items()),
        ]
        words = [
            *("--quiet", "--register=no", "--keep-unit", "--private-network", "--console=pipe"),
            *("--volatile=overlay", "--kill-signal=SIGRTMIN+3", "--capability=CAP_SYS_ADMIN"),
            *("--property=DeviceAllow=/dev/fuse rw", f"--machine=onesync-node-{os.getpid()}"),
            *(*binds, "--boot", f"--directory={self._image}"),
        ]
        with (self.home / "console").open("ab") as console:
            self._process = subprocess.Popen(
                ["systemd-nspawn", *words],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
            )
        self.wait_for(
            lambda: (
                self.run("systemctl", "is-system-running").stdout.strip() in ("running", "degraded")
            ),
            "the node to boot",
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process is not None
        self.release()
        if (first := leader(self._process)) is not None:
            os.kill(first, 9)
        self._process.terminate()
        self._process.wait(30)

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
        path = "/usr/sbin:/usr/bin:/sbin:/bin"
        settings = {"PATH": path, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
        done = subprocess.run(
            ["nsenter", "-t", str(first), "-a", *command],
            input=text,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            env={**settings, **(environment or {})},
        )
        assert not check or done.returncode == 0, (done.args, done.stdout, done.stderr)
        return done

    def write(self, path: str, text: str) -> None:
        """Write a file in the node."""
        self.run("tee", path, text=text, check=True)

    def apt(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run apt-get, which finds no network."""
        options = ("-y", "--no-install-recommends", "-o", "Dpkg::Use-Pty=0")
        return self.run("apt-get", *options, *words, environment=environment)

    def install(self, found: Path) -> subprocess.CompletedProcess[str]:
        """Install a package file, which must succeed."""
        shutil.copy(found, self.packages)
        done = self.apt("install", "--reinstall", f"/srv/packages/{found.name}")
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    def deploy(self, configuration: str = CONFIGURATION) -> None:
        """Mount OneData, and deploy the folder of the instance p."""
        self.mount(configuration)
        done = self.run("systemctl", "start", UNIT)
        assert done.returncode == 0, done.stderr + self.journal()

    def mount(self, configuration: str = CONFIGURATION) -> None:
        """Mount OneData, and configure the instance p."""
        self.run("mkdir", "-p", "/mnt/onedata", check=True)
        self.write("/etc/systemd/system/onedata.service", _MOUNT)
        self.write("/etc/onesync/p.toml", configuration)
        self.run("chown", "-R", "onesync:", "/srv/backing", "/srv/work", check=True)
        self.run("systemctl", "daemon-reload", check=True)
        self.run("systemctl", "start", "onedata.service", check=True)

    def show(self, name: str, unit: str = UNIT) -> str:
        """Return a unit's property."""
        return self.run("systemctl", "show", "--value", "-p", name, unit).stdout.strip()

    def is_active(self) -> bool:
        return self.show("ActiveState") == "active"

    def journal(self, *words: str) -> str:
        return self.run("journalctl", "--no-pager", "-u", UNIT, *words).stdout

    def slow_down(self, seconds: float) -> None:
        """Let every call on the mount take this much longer."""
        self._set(0, int(seconds * 1e9))

    def hang(self) -> None:
        """Let no call on the mount be carried out until ``release``."""
        self._set(1, 1)

    def release(self) -> None:
        self._set(1, 0)

    def bytes_read(self) -> int:
        """Return how much was read from OneData."""
        (number,) = struct.unpack_from("=q", self.control.read_bytes(), 3 * 8)
        return int(number)

    def _set(self, place: int, number: int) -> None:
        with self.control.open("r+b") as file:
            file.seek(place * 8)
            file.write(struct.pack("=q", number))

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        """Wait until ``condition()``, or fail with what the node said."""
        deadline = time.monotonic() + _WAIT_SECONDS
        while not condition():
            assert time.monotonic() < deadline, f"waited for {what} in vain\n{self.journal()}\n" + (
                self.home / "console"
            ).read_text(errors="replace")
            time.sleep(0.05)
