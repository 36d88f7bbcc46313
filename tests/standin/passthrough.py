"""A mount in C that counts its calls, slows them down and holds them, and does nothing else.

Where times are measured the stand-in is too slow of itself: what it works is not what OneData's
client works. Neither lets the kernel keep names or attributes.
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
from typing import Self

_SOURCE = Path(__file__).parent / "passthrough.c"
_CALLS = (
    *("getattr", "readdir", "mkdir", "rmdir", "unlink", "rename", "chmod", "utimens", "truncate"),
    *("create", "open", "read", "write", "flush", "fsync", "release", "getxattr"),
)
_SWITCH = struct.Struct("=q")
_NUMBERS = struct.Struct(f"={2 + len(_CALLS)}q")
_LATENCY, _HELD, _ALONE, _TELLS, _COUNTED = (place * _SWITCH.size for place in range(5))


class Switches:
    """What a pass-through is told, and counts: the file that it shares with others."""

    def __init__(self, path: Path) -> None:
        """Make the file, before the pass-through reads it."""
        path.write_bytes(bytes(_COUNTED + _NUMBERS.size))
        with path.open("r+b") as file:
            self._shared = mmap.mmap(file.fileno(), _COUNTED + _NUMBERS.size)

    def close(self) -> None:
        """Let go of the file."""
        self._shared.close()

    def counts(self) -> dict[str, int]:
        """Return the calls since ``reset`` by name, and ``bytes_written`` and ``bytes_read``."""
        written, read, *calls = _NUMBERS.unpack(self._shared[_COUNTED:])
        found = {name: number for name, number in zip(_CALLS, calls, strict=True) if number}
        return {**found, "bytes_written": written, "bytes_read": read}

    def reset(self) -> None:
        """Count from zero."""
        self._shared[_COUNTED:] = bytes(_NUMBERS.size)

    def latency(self, seconds: float) -> None:
        """Let every call take this much longer."""
        self._switch(_LATENCY, int(seconds * 1e9))

    def one_by_one(self, seconds: float) -> None:
        """Let calls wait for each other, for this long each."""
        self._switch(_ALONE, int(seconds * 1e9))

    def hang(self) -> None:
        """Let no call be carried out until ``release``; what is on its way ends."""
        self._switch(_HELD, 1)

    def release(self) -> None:
        """Let the held calls go on."""
        self._switch(_HELD, 0)

    def _switch(self, place: int, number: int) -> None:
        self._shared[place : place + _SWITCH.size] = _SWITCH.pack(number)


class Passthrough(Switches):
    """The pass-through in C, built beside what it mounts."""

    def __init__(self, home: Path, *options: str, tells: bool = False) -> None:
        """Prepare to mount ``home/backing`` at ``home/mount``, with more of FUSE's options.

        One that ``tells`` says of every file that it has arrived, at once.
        """
        home.mkdir(parents=True, exist_ok=True)
        super().__init__(home / "control")
        self._switch(_TELLS, int(tells))
        self.backing = home / "backing"
        self.path = home / "mount"
        self._home = home
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.backing.mkdir(parents=True, exist_ok=True)
        self.path.mkdir(parents=True, exist_ok=True)
        options = ["-f", "-o", ",".join(("max_threads=64,fsname=passthrough", *self._options))]
        places = [str(self.backing), str(self._home / "control"), str(self.path)]
        self._process = subprocess.Popen([str(built(self._home)), *places, *options])
        deadline = time.monotonic() + 20
        while not os.path.ismount(self.path):
            assert self._process.poll() is None, "the pass-through ended"
            assert time.monotonic() < deadline, "the pass-through did not mount"
            time.sleep(0.02)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process is not None
        self.release()
        self.close()
        subprocess.run(["fusermount3", "-uz", str(self.path)], check=True)
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:  # somebody holds a file of it open
            self._process.kill()
            self._process.wait()


def built(home: Path) -> Path:
    """Compile it into ``home``; returns the program, which runs on nodes with another libfuse."""
    program = home / "passthrough"
    asked = ["pkg-config", "--cflags", "--libs", "fuse3"]
    told = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    flags = told.replace("-lfuse3", "-l:libfuse3.a -ldl").split()
    compiler = shutil.which("cc") or "gcc"
    subprocess.run([compiler, "-O2", "-o", str(program), str(_SOURCE), *flags], check=True)
    return program
