"""What a tool uses of the machine, its descendants included: processor time and memory."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PAUSE_SECONDS = 0.5
"""Looking at memory holds up who uses it, the more the more he has."""
_FIRST_SECONDS = 0.05
_MAPPING = re.compile(rb"^(?=[0-9a-f]+-)", re.MULTILINE)
_NUMBER = re.compile(rb"^(\w+): +(\d+) kB", re.MULTILINE)


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
    """Return the resident memory of ``top`` and its descendants (``memory_of``)."""
    return memory_of(descendants(top))


def memory_of(processes: Iterable[int]) -> int:
    """Return the resident bytes of ``processes``; the pages of a file that they share count once.

    Whoever else has that file mapped, too, takes nothing off: their part is no merit of theirs.
    """
    own, files = 0, dict[bytes, int]()
    for process in processes:
        with suppress(OSError):
            for place, size, shared in _mappings(Path(f"/proc/{process}/smaps").read_bytes()):
                own += size - shared
                files[place] = max(files.get(place, 0), shared)
    return own + sum(files.values())


def _mappings(told: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield of each mapping which part of which file it is, its resident bytes and the file's."""
    for mapping in _MAPPING.split(told)[1:]:
        place = b" ".join(mapping.split(b"\n", 1)[0].split()[2:5])
        numbers = {key: 1024 * int(number) for key, number in _NUMBER.findall(mapping)}
        is_file = not place.endswith(b" 0")
        yield place, numbers[b"Rss"], numbers[b"Rss"] - numbers[b"Anonymous"] if is_file else 0


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
