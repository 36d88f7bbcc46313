"""What something takes in memory, measured in a process of its own."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from pathlib import Path


def grown_kib(act: Callable[[], object]) -> int:
    """Return by how much a process of its own grows at most while it does something."""
    out, into = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            Path("/proc/self/clear_refs").write_text("5")  # the highest mark so far is forgotten
            before = _kib("VmRSS")
            act()
            os.write(into, b"%d" % (_kib("VmHWM") - before))
            os._exit(0)
        except BaseException:  # noqa: BLE001 - the other process must end here
            traceback.print_exc()
            os._exit(1)
    os.close(into)
    with os.fdopen(out, "rb") as answer:
        found = answer.read()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    return int(found)


def _kib(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))
