"""West-Life's scripts on this node: their cron jobs, and what of theirs is running.

Their push deletes in OneData what it does not find here, onesync's own files among it: it must have
ended for good before the folder is adopted.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from onesync.core.model import printable
from onesync.errors import ConfigurationError

CRONTABS = tuple(
    map(Path, ("/etc/crontab", "/etc/cron.d", "/var/spool/cron/crontabs", "/var/spool/cron"))
)
"""Those of the system and of its users, as Debian and as Red Hat keep them."""
PROCESSES = Path("/proc")
_SCRIPTS = ("working-to-onedata", "onedata-to-working")
_OFF = "# put out of action by onesync adopt: "


@dataclass(frozen=True, slots=True)
class Job:
    """A line of a crontab that copies the folder."""

    crontab: Path
    line: str

    def told(self) -> str:
        """Return where it stands and what it says."""
        return f"{self.crontab}: {printable(self.line.strip())}"


def jobs(folders: Sequence[Path]) -> list[Job]:
    """Return the cron jobs that run their scripts, or an rsync of one of ``folders``.

    Raises ConfigurationError where not all crontabs can be read.
    """
    return [
        Job(crontab, line)
        for crontab in _crontabs()
        for line in _text(crontab).splitlines()
        if not line.lstrip().startswith("#") and _is_theirs(line, folders)
    ]


def disable(job: Job, kept_in: Path) -> Path:
    """Comment a job out; returns the copy of its crontab in the directory ``kept_in``."""
    copy = kept_in / f"crontab-{job.crontab.name}"
    if not copy.exists():  # of several jobs in one crontab the copy has all
        shutil.copy2(job.crontab, copy)
    lines = _text(job.crontab).splitlines(keepends=True)
    changed = [_OFF + line if line.rstrip("\n") == job.line else line for line in lines]
    status = job.crontab.stat()
    # A new file in its place: cron reads its crontabs again when the directory has changed.
    new = job.crontab.with_name(f".{job.crontab.name}.new")
    new.write_bytes("".join(changed).encode("utf-8", "surrogateescape"))
    os.chown(new, status.st_uid, status.st_gid)
    new.chmod(status.st_mode & 0o777)
    new.replace(job.crontab)
    return copy


def running(folders: Sequence[Path]) -> list[str]:
    """Return what of theirs is running now, each as its number and command."""
    found = []
    for process in PROCESSES.iterdir():
        if not process.name.isdecimal() or int(process.name) == os.getpid():
            continue
        try:
            words = (process / "cmdline").read_bytes().replace(b"\0", b" ")
        except OSError:
            continue  # it ended meanwhile
        command = words.decode("utf-8", "backslashreplace").strip()
        if _is_theirs(command, folders):
            found.append(f"{process.name} ({printable(command[:200])})")
    return found


def names_of_this_node() -> set[str]:
    """Return what ``hostname`` and ``hostname -f`` say."""
    name = socket.gethostname()
    try:
        full = socket.getaddrinfo(name, None, flags=socket.AI_CANONNAME)[0][3]
    except OSError:
        full = name
    return {name, full}


def _is_theirs(command: str, folders: Sequence[Path]) -> bool:
    if any(script in command for script in _SCRIPTS):
        return True
    return "rsync" in command and any(str(folder) in command for folder in folders)


def _crontabs() -> Iterator[Path]:
    for place in CRONTABS:
        if not os.access(place, os.R_OK) and place.exists():
            raise _unread(place)
        if place.is_dir():
            yield from sorted(path for path in place.iterdir() if path.is_file())
        elif place.is_file():
            yield place


def _text(crontab: Path) -> str:
    try:
        return crontab.read_bytes().decode("utf-8", "surrogateescape")
    except OSError as error:
        raise _unread(crontab) from error


def _unread(place: Path) -> ConfigurationError:
    return ConfigurationError(
        f"{place} cannot be read, so nobody knows whether the predecessors' cron job still runs;"
        " nothing was changed. Run it as root."
    )
