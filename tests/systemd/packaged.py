"""A node made from nothing but Debian and the package: no checkout, none of this machine's Python.

OneData is the pass-through in C, which ``control`` slows down and holds. What the node is made of
lies in memory, and is gone with it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from tests.standin.passthrough import Switches, built
from tests.systemd import nspawn
from tests.systemd.nspawn import REPOSITORY, UNIT, Machine, suite

PACKAGES = (
    *("dbus", "fuse3", "man-db", "needrestart", "procps", "python3"),
    *("systemd", "systemd-sysv", "cron", "rsync", "fish", "zsh"),
)
_VERSION = "__version__ = "

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


def publish(place: Path) -> None:
    """Make an apt repository of a directory with one package file."""
    (file,) = place.glob("*.deb")
    about = subprocess.run(["dpkg-deb", "-f", file], check=True, capture_output=True, text=True)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    more = f"Filename: ./{file.name}\nSize: {file.stat().st_size}\nSHA256: {digest}\n"
    (place / "Packages").write_text(about.stdout + more)


def install(image: Path) -> None:
    """Install the package in an image that is not booted, as an image builder does; no network."""
    shutil.copy(package(), image / "srv" / "onesync.deb")
    script = "apt-get install -y /srv/onesync.deb; rm /srv/onesync.deb"
    words = [
        *("systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--as-pid2"),
        *("--private-network", "--console=pipe", f"--directory={image}"),
        *(f"--machine=onesync-image-{os.getpid()}", "sh", "-euc", script),
    ]
    done = subprocess.run(
        words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


class Node(Machine):
    """One node; ``home`` has its OneData folder, its working directory and the packages."""

    def __init__(
        self, home: Path, *, image: Path | None = None, binds: Mapping[str, Path] | None = None
    ) -> None:
        """``binds`` are its places that show files or directories of ours."""
        super().__init__(home)
        self._image = image or root()
        self._binds = binds or {}
        self.project = home / "backing" / "project"
        self.work = home / "work"
        self.packages = home / "packages"
        for path in (self.project, self.work, self.packages):
            path.mkdir(parents=True)
        self.control = home / "control"
        self._mount = Switches(self.control)
        self._program = built(home)

    def image(self) -> Path:
        return self._image

    def binds(self) -> list[str]:
        return [
            f"--bind={self.home / 'backing'}:/srv/backing",
            f"--bind={self.work}:/srv/work",
            f"--bind={self.control}:/srv/control",
            f"--bind-ro={self.packages}:/srv/packages",
            f"--bind-ro={self._program}:/usr/local/bin/passthrough",
            *(f"--bind-ro={ours}:{place}" for place, ours in self._binds.items()),
        ]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()
        super().__exit__(kind, error, trace)

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

    def is_active(self) -> bool:
        return self.show("ActiveState") == "active"

    def slow_down(self, seconds: float) -> None:
        """Let every call on the mount take this much longer."""
        self._mount.latency(seconds)

    def hang(self) -> None:
        """Let no call on the mount be carried out until ``release``."""
        self._mount.hang()

    def release(self) -> None:
        """Let the held calls go on."""
        self._mount.release()

    def bytes_read(self) -> int:
        """Return how much was read from OneData."""
        return self._mount.counts()["bytes_read"]


def bare(node: Node) -> None:
    """Let apt look nowhere but in what is added, for there is no network."""
    node.run("sh", "-ec", "rm -f /etc/apt/sources.list /etc/apt/sources.list.d/*", check=True)
