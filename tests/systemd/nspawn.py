"""What all nodes booted in systemd-nspawn share: Debian's root, and the way in."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

_ROOTS = Path("/var/cache/onesync-tests")


def suite() -> str:
    """Return the nodes' Debian: this machine's, or what ONESYNC_SUITE names."""
    if named := os.environ.get("ONESYNC_SUITE"):
        return named
    for line in Path("/etc/os-release").read_text().splitlines():
        if line.startswith("VERSION_CODENAME="):
            return line.partition("=")[2]
    raise AssertionError("not a Debian")


def root(packages: Sequence[str], *directories: str) -> Path:
    """Return a Debian with ``packages`` and empty ``directories``, cached; the first call makes it.

    One of the test processes makes it, the others wait.
    """
    key = hashlib.sha256(" ".join((*packages, *directories)).encode()).hexdigest()[:12]
    path = _ROOTS / f"{suite()}-{key}"
    _ROOTS.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            _make(path, packages, directories)
    return path


def _make(path: Path, packages: Sequence[str], directories: Sequence[str]) -> None:
    making = path.with_suffix(".making")
    shutil.rmtree(making, ignore_errors=True)
    options = ["--quiet", "--variant=minbase", f"--include={','.join(packages)}"]
    subprocess.run(["mmdebstrap", *options, suite(), making], check=True)
    (making / "etc/machine-id").write_text("")
    for name in directories:
        (making / name).mkdir(parents=True)
    making.rename(path)


def leader(process: subprocess.Popen[bytes]) -> int | None:
    """Return the PID 1 that an nspawn has started, as this machine sees it."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    try:
        found = children.read_text().split()
    except OSError:
        return None
    return int(found[0]) if found else None
