"""What a tool uses of the machine, its descendants included: processor time and memory."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PAUSE_SECONDS = 0.5
"""Looking at memory holds up who uses it, the more the more he has."""
_FIRST_SECONDS = 0.05


def descendants(top: int) -> list[int]:
    """Return ``top`` and all processes that it and its children started and that live."""
    found = [top]
    for process in found:
        with suppress(OSError):
            for task in Path(f"/proc/{process}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
    return found


def cpu_seconds(top: int) -> float:
    """Return user and system time of ``top`` and its descendants, those that ended included."""
    ticks = 0
    for process in descendants(top):
        with suppress(OSError):
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))
    return ticks / _TICKS


def memory_bytes(top: int) -> int:
    """Return the resident memory of ``top`` and its descendants; what is shared counts once."""
    size = 0
    for process in descendants(top):
        with suppress(OSError, ValueError, IndexError):
            for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    size += 1024 * int(line.split()[1])
    return size


class Watch:
    """Samples a process and its descendants until the block ends; what ends in between is missed.

    Attributes:
        memory: the most bytes that were seen at once.
        cpu: seconds of processor time within the block.
    """

    def __init__(self, top: int) -> None:
        """Prepare to watch the process ``top``."""
        self._top = top
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._before = 0.0
        self._newest = 0.0
        self.memory = 0

    @property
    def cpu(self) -> float:
        return self._newest - self._before

    def __enter__(self) -> Watch:
        self._before = self._newest = cpu_seconds(self._top)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._look()  # CPU of a short act, and of what a command's end left

    def _sample(self) -> None:
        while not self._over.wait(_PAUSE_SECONDS if self.memory else _FIRST_SECONDS):
            self._look()

    def _look(self) -> None:
        self.memory = max(self.memory, memory_bytes(self._top))
        self._newest = max(self._newest, cpu_seconds(self._top))
