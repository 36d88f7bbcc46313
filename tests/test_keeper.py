"""The process that keeps OneData mounted, with the stand-in for oneclient."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from onesync.mounts import is_mount_point, mount_of
from tests.node import SOON
from tests.standin.client import client, switches

_PROGRAM = """
import sys
from onesync import instance
instance.CONFIGURATIONS, instance._EMPTIED = sys.argv.pop(), ()
from onesync.program import main
main()
"""


@pytest.fixture
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="onesync-keeper-") as place:
        yield Path(place)


@contextmanager
def kept(home: Path, point: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run the keeper until it says that OneData is mounted at ``point``; then end it."""
    environment = client(home)
    text = f'working_dir = "/srv/p"\nonedata_dir = "{point}/p"\n'
    text += f'[oneclient]\nhost = "provider.test"\nmount_point = "{point}"\n'
    (home / "p.toml").write_text(text)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(home / "notify"))
        systemd.settimeout(SOON)
        words = [sys.executable, "-c", _PROGRAM, "oneclient", "--instance", "p", str(home)]
        told = {"NOTIFY_SOCKET": str(home / "notify"), "CREDENTIALS_DIRECTORY": str(home)}
        process = subprocess.Popen(words, env=environment | told)
        try:
            assert systemd.recv(4096) == b"READY=1"
            yield process
        finally:
            process.terminate()
            try:
                assert process.wait(SOON) == 0
            finally:
                process.kill()
                subprocess.run(["umount", "-l", point], check=False, capture_output=True)
                switches(point).unlink(missing_ok=True)


@pytest.mark.fuse
def test_a_mount_point_beneath_a_link_is_mounted_and_known(home: Path) -> None:
    """As /home is one to /data/home: the kernel's table has the path without links."""
    real = home / "data" / "home" / "ada" / f"{home.name}-point"
    real.mkdir(parents=True)
    (home / "home").symlink_to("data/home")
    point = home / "home" / "ada" / real.name
    with kept(home, point):
        assert is_mount_point(str(point))
        assert mount_of(str(point / "p")).point == str(real)
        (home / "backing" / "file").write_text("1")
        assert (point / "file").read_text() == "1"
    assert not is_mount_point(str(point))
    assert not is_mount_point(str(real))


@pytest.mark.fuse
def test_a_link_in_the_place_of_the_mount_point(home: Path) -> None:
    real = home / f"{home.name}-point"
    real.mkdir()
    link = home / "link" / real.name
    link.parent.mkdir()
    link.symlink_to(real)
    with kept(home, link):
        assert is_mount_point(str(link))
        assert os.path.ismount(real)
    assert not is_mount_point(str(link))
