"""The two mounts that all tools are measured on: the stand-in, and a pass-through in C.

The stand-in behaves like OneData and is slow of itself; the pass-through only counts, so that its
times are the tools'. Neither lets the kernel keep names or attributes.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from tests.standin.mounted import Mounted
from tests.standin.passthrough import Passthrough

_DISK_BYTES = 6 << 30
_DISK_INODES = 2_000_000


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


def standin(home: Path) -> Mount:
    """Return the stand-in, to be mounted."""
    return Mounted(home)


def passthrough(home: Path) -> Mount:
    """Return the pass-through in C, to be mounted."""
    return Passthrough(home)


@contextmanager
def disk(within: Path) -> Iterator[Path]:
    """Yield a directory on ext4, whose disk is a file in ``within``. Needs to be root."""
    with tempfile.TemporaryDirectory(dir=within) as home:
        image, top = Path(home, "disk"), Path(home, "top")
        with image.open("wb") as file:
            file.truncate(_DISK_BYTES)
        # What is usually done later, beside what is measured, is done at once.
        made = ["mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0"]
        subprocess.run([*made, "-N", str(_DISK_INODES), image], check=True)
        top.mkdir()
        subprocess.run(["mount", "-o", "loop", image, top], check=True)
        try:
            yield top
        finally:
            subprocess.run(["umount", top], check=True)


def calls_of(counts: dict[str, int]) -> int:
    """Return how many calls were counted, all together."""
    return sum(number for name, number in counts.items() if not name.startswith("bytes_"))
