"""The two mounts that all tools are measured on: the stand-in, and a pass-through in C.

The stand-in behaves like OneData and is slow of itself; the pass-through only counts, so that its
times are the tools'. Neither lets the kernel keep names or attributes.
"""

from __future__ import annotations

import mmap
import os
import shutil
import struct
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from tests.standin.mounted import Mounted

_SOURCE = Path(__file__).parent / "passthrough.c"
_CALLS = (
    *("getattr", "readdir", "mkdir", "rmdir", "unlink", "rename", "chmod", "utimens", "truncate"),
    *("create", "open", "read", "write", "flush", "fsync", "release"),
)
_NUMBERS = struct.Struct(f"={3 + len(_CALLS)}q")


class Mount(Protocol):
    """A mount at ``path`` over the plain folder ``backing``, which nobody counts."""

    path: Path
    backing: Path

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def counts(self) -> dict[str, int]:
        """Return the calls since ``reset`` by name, and the bytes."""

    def reset(self) -> None:
        """Count from zero."""

    def latency(self, seconds: float) -> None:
        """Let every call take this much longer."""


class Passthrough:
    """The pass-through in C, built beside what it mounts."""

    def __init__(self, home: Path) -> None:
        """Prepare to mount ``home/backing`` at ``home/mount``."""
        self.backing = home / "backing"
        self.path = home / "mount"
        self._home = home
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.backing.mkdir(parents=True, exist_ok=True)
        self.path.mkdir(parents=True, exist_ok=True)
        control = self._home / "control"
        control.write_bytes(bytes(_NUMBERS.size))
        options = ["-f", "-o", "max_threads=64,fsname=passthrough"]
        places = [str(self.backing), str(control), str(self.path)]
        self._process = subprocess.Popen([str(_built(self._home)), *places, *options])
        deadline = time.monotonic() + 20
        while not os.path.ismount(self.path):
            assert self._process.poll() is None, "the pass-through ended"
            assert time.monotonic() < deadline, "the pass-through did not mount"
            time.sleep(0.02)
        with control.open("r+b") as file:
            self._numbers = mmap.mmap(file.fileno(), _NUMBERS.size)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process is not None
        self._numbers.close()
        subprocess.run(["fusermount3", "-uz", str(self.path)], check=True)
        self._process.wait(20)

    def counts(self) -> dict[str, int]:
        _, written, read, *calls = _NUMBERS.unpack(self._numbers[:])
        found = {name: number for name, number in zip(_CALLS, calls, strict=True) if number}
        return {**found, "bytes_written": written, "bytes_read": read}

    def reset(self) -> None:
        self._numbers[8:] = bytes(_NUMBERS.size - 8)

    def latency(self, seconds: float) -> None:
        self._numbers[:8] = struct.pack("=q", int(seconds * 1e9))


def _built(home: Path) -> Path:
    program = home / "passthrough"
    flags = subprocess.run(
        ["pkg-config", "--cflags", "--libs", "fuse3"], capture_output=True, text=True, check=True
    ).stdout.split()
    compiler = shutil.which("cc") or "gcc"
    subprocess.run([compiler, "-O2", "-o", str(program), str(_SOURCE), *flags], check=True)
    return program


def standin(home: Path) -> Mount:
    """Return the stand-in, to be mounted."""
    return Mounted(home)


def passthrough(home: Path) -> Mount:
    """Return the pass-through in C, to be mounted."""
    return Passthrough(home)


def calls_of(counts: dict[str, int]) -> int:
    """Return how many calls were counted, all together."""
    return sum(number for name, number in counts.items() if not name.startswith("bytes_"))
