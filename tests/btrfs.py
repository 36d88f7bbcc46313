"""A real btrfs in a file: it shares content, and notices when its disk gives other bytes back."""

from __future__ import annotations

import mmap
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.machine import lacks


@dataclass(frozen=True)
class Btrfs:
    """One that is mounted at ``path``; its disk is the file ``image``."""

    image: Path
    path: Path

    def spoil(self, file: Path, marker: bytes) -> None:
        """Let the disk lose the block with ``marker``, which stands once in ``file`` and nowhere.

        To read it fails with EIO from now on, as a disk's own bad block does.
        """
        fd = os.open(file, os.O_RDONLY)
        try:
            os.fsync(fd)
            with self.image.open("r+b") as disk, mmap.mmap(disk.fileno(), 0) as content:
                place = content.find(marker)
                assert place >= 0
                assert content.find(marker, place + 1) < 0
                content[place : place + len(marker)] = bytes(len(marker))
                content.flush()
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


@contextmanager
def btrfs(home: Path) -> Iterator[Btrfs]:
    """Yield one that is mounted in ``home``."""
    maker = shutil.which("mkfs.btrfs", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if os.geteuid() != 0 or maker is None:
        lacks("needs root and btrfs-progs")
    image, path = home / "image", home / "btrfs"
    path.mkdir()
    with image.open("wb") as file:
        file.truncate(300 << 20)
    subprocess.run([maker, "-q", image], check=True, capture_output=True)
    mounted = subprocess.run(["mount", "-o", "loop", image, path], capture_output=True, check=False)
    if mounted.returncode != 0:
        # The kernel is not ours to choose, whoever runs the tests.
        pytest.skip(f"this kernel mounts no btrfs: {mounted.stderr.decode()}")
    try:
        yield Btrfs(image, path)
    finally:
        # Lazily: children of a daemon that was killed may just be ending.
        subprocess.run(["umount", "-l", path], check=True)
