"""The two mounts that all tools are measured on: the stand-in, and a pass-through in C.

The stand-in behaves like OneData and is slow of itself; the pass-through only counts, so that its
times are the tools'. Neither lets the kernel keep names or attributes.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from tests.standin.mounted import Mounted
from tests.standin.passthrough import Passthrough


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


def calls_of(counts: dict[str, int]) -> int:
    """Return how many calls were counted, all together."""
    return sum(number for name, number in counts.items() if not name.startswith("bytes_"))
