"""A node with the stand-in for OneData; onesync is the package's, or this checkout's.

The interpreter of the stand-in and of the probes is this machine's, with its virtual environment;
so is onesync's where the node has no package.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from tests.systemd import nspawn
from tests.systemd.nspawn import REPOSITORY, Machine

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

_USERS = {"onesync": 990, "scipion": 1500}
"""Those of a node without the package: the unit's own, and a workload's."""
_VENDOR = "usr/lib/systemd/system"
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


def debian() -> Path:
    """Return what a node needs beside onesync."""
    return nspawn.root(PACKAGES, "mnt/onedata")


def users_of(image: Path) -> dict[str, int]:
    """Return the numbers of the users that the image has."""
    lines = (image / "etc" / "passwd").read_text().splitlines()
    return {name: int(number) for name, _, number, *_ in (line.split(":") for line in lines)}


class Container(Machine):
    """One node."""

    def __init__(
        self,
        home: Path,
        *programs: Path,
        user: str = "onesync",
        provider: Path | None = None,
        image: Path | None = None,
    ) -> None:
        """``programs`` are this machine's that the node has, too; ``user`` owns its directories.

        ``provider`` is another node's, or one of its own in ``home``. ``image`` has the package
        and the users; without one all is this checkout's.
        """
        super().__init__(home)
        self._programs = programs
        self._image = image
        self.users = _USERS if image is None else users_of(image)
        self._user = self.users[user]
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
        self._put_units()
        self.put_token(TOKEN)
        (self.provider / "token").write_text(TOKEN)
        (home / "etc" / "p.toml").write_text(CONFIGURATION)
        lines = (f"u {name} {number}" for name, number in _USERS.items())
        (home / "sysusers").write_text("\n".join(lines) + "\n")
        for name, text in (("onesync", PROGRAM), ("oneclient", ONECLIENT)):
            (home / name).write_text(text)
            (home / name).chmod(0o755)

    def _put_units(self) -> None:
        """Give the node the checkout's units; the package's are there, but for ``enable``."""
        source, target = REPOSITORY / "systemd", self.units
        if self._image is not None:
            source, target = self._image / _VENDOR, self.home / "image" / _VENDOR
            target.mkdir(parents=True)
        for unit in source.glob("one*.[st][ea]r*"):
            shutil.copy(unit, target)

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

    def image(self) -> Path:
        return self._image or debian()

    def binds(self) -> list[str]:
        binds = [
            f"--bind={self.provider}:/srv/provider",
            f"--bind={self.work}:/srv/work",
            f"--bind={self.home / 'state'}:/var/lib/onesync",
            f"--bind={self.home / 'journal'}:/var/log/journal",
            f"--bind-ro={self.home / 'etc'}:/etc/onesync",
            f"--bind-ro={self.units}:/etc/systemd/system",
            f"--bind-ro={REPOSITORY}:{_CHECKOUT}",
            f"--bind-ro={self.home / 'oneclient'}:/usr/bin/oneclient",
            *(f"--bind-ro={program}" for program in self._programs),
        ]
        if self._image is None:
            binds += [
                f"--bind-ro={self.home / 'onesync'}:/usr/bin/onesync",
                f"--bind-ro={self.home / 'sysusers'}:/usr/lib/sysusers.d/onesync.conf",
                f"--bind-ro={REPOSITORY / 'systemd' / 'onesync-generator'}:{_GENERATORS}/onesync",
            ]
        if sys.base_prefix != "/usr":
            binds.append(f"--bind-ro={sys.base_prefix}:{_INTERPRETER}")
            library = Path(sys.base_prefix, "lib", sysconfig.get_config_var("INSTSONAME"))
            if library.suffix != ".a":
                binds.append(f"--bind-ro={library}:/usr/lib/{library.name}")
        return binds

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

    def last_journal(self) -> list[str]:
        """Return the messages of all boots, in their order, also of a node that is down."""
        words = ["journalctl", "--merge", "-o", "cat", "-D", str(self.home / "journal")]
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()
