"""West-Life's scripts on this node: their cron jobs, and what of theirs is running.

Their push deletes in OneData what it does not find here, onesync's own files among it: it must have
ended for good before the folder is adopted.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from onesync.core.model import printable
from onesync.errors import ConfigurationError

CRONTABS = (
    *map(Path, ("/etc/crontab", "/etc/anacrontab", "/etc/cron.d")),
    *map(Path, ("/var/spool/cron/crontabs", "/var/spool/cron")),
)
"""Those of the system and of its users, as Debian and as Red Hat keep them."""
CRON_SCRIPTS = tuple(
    Path("/etc", f"cron.{often}") for often in ("hourly", "daily", "weekly", "monthly")
)
"""What cron runs of itself: each executable file in there."""
PROCESSES = Path("/proc")
_SCRIPTS = ("working-to-onedata", "onedata-to-working")
_RSYNC = re.compile(r"(?:^|[/\s;&|(])rsync(?:\s|$)")
_OFF = "# put out of action by onesync adopt: "


@dataclass(frozen=True, slots=True)
class Job:
    """A line of a crontab, or of a script that cron runs, that copies the folder."""

    file: Path
    line: str

    def told(self) -> str:
        """Return where it stands and what it says."""
        return f"{self.file}: {printable(self.line.strip())}"


def jobs(folders: Collection[Path]) -> list[Job]:
    """Return the cron jobs that run their scripts, or an rsync of one of ``folders``.

    Raises ConfigurationError where not all crontabs can be read.
    """
    return [
        Job(file, line)
        for file in (*_crontabs(), *_scripts())
        for line in _lines(file)
        if not line.lstrip().startswith("#") and _is_theirs(line, folders)
    ]


def disable(found: Collection[Job], kept_in: Path) -> list[str]:
    """Comment jobs out; returns a sentence for each.

    Each crontab is kept as it was in the directory ``kept_in``, readable by the caller alone. A
    script that cron runs stays as it is, and is executable no more.
    """
    told = []
    for file in dict.fromkeys(job.file for job in found):
        theirs = {job.line for job in found if job.file == file}
        try:
            how = _stop(file) if file.parent in CRON_SCRIPTS else _comment(file, theirs, kept_in)
        except OSError as error:
            raise ConfigurationError(
                f"The predecessors' cron job in {file} cannot be put out of action"
                f" ({error.strerror}). Remove it, then adopt again."
            ) from error
        told += [f"{how}: {job.told()}" for job in found if job.file == file]
    return told


def _stop(script: Path) -> str:
    script.chmod(script.stat().st_mode & 0o666)
    return "Not executable any more"


def _comment(crontab: Path, theirs: Collection[str], kept_in: Path) -> str:
    lines = _lines(crontab)
    copy = _keep(crontab, "\n".join(lines), kept_in)
    changed = [_OFF + line if line in theirs else line for line in lines]
    # A new file in its place: cron reads its crontabs again when the directory has changed.
    status = crontab.stat()
    new = crontab.with_name(f".{crontab.name}.new")
    new.unlink(missing_ok=True)
    _write(new, "\n".join(changed))
    os.chown(new, status.st_uid, status.st_gid)
    new.chmod(status.st_mode & 0o777)
    new.replace(crontab)
    return f"Commented out (as it was: {copy})"


def _keep(crontab: Path, text: str, kept_in: Path) -> Path:
    """Write a copy beside those of earlier tries, and of crontabs with the same name elsewhere."""
    number = 1
    while True:
        copy = kept_in / f"crontab-{crontab.name}{f'.{number}' if number > 1 else ''}"
        try:
            _write(copy, text)
        except FileExistsError:
            number += 1
        else:
            return copy


def _write(path: Path, text: str) -> None:
    """Make a file that nobody else reads, and only where nothing stands: also no link of others."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with open(fd, "wb") as file:
        file.write(text.encode("utf-8", "surrogateescape"))


def running(folders: Collection[Path]) -> list[str]:
    """Return what of theirs is running now, each as its number and command."""
    found = []
    for process in PROCESSES.iterdir():
        if not process.name.isdecimal() or int(process.name) == os.getpid():
            continue
        try:
            words = (process / "cmdline").read_bytes().replace(b"\0", b" ")
        except OSError:
            continue  # it ended meanwhile
        command = words.decode("utf-8", "surrogateescape").strip()
        place = _place(process) if _RSYNC.search(command) else ""
        if _is_theirs(f"{command} {place}", folders):
            found.append(f"{process.name} ({printable(command[:200])})")
    return found


def _place(process: Path) -> str:
    """Return where a process works, for what it copies may be named from there."""
    try:
        return os.readlink(process / "cwd")
    except OSError:
        return ""  # it ended meanwhile, or is somebody else's and we are not root


def names_of_this_node() -> set[str]:
    """Return what ``hostname`` and ``hostname -f`` say."""
    name = socket.gethostname()
    try:
        full = socket.getaddrinfo(name, None, flags=socket.AI_CANONNAME)[0][3]
    except OSError:
        full = name
    return {name, full}


def _is_theirs(command: str, folders: Collection[Path]) -> bool:
    if any(script in command for script in _SCRIPTS):
        return True
    return _RSYNC.search(command) is not None and any(_names(command, folder) for folder in folders)


def _names(command: str, folder: Path) -> bool:
    """Whether a command names the folder or what is in it, and not another with a longer name."""
    return re.search(rf"{re.escape(str(folder))}(?![^/\s'\";&|)])", command) is not None


def _crontabs() -> Iterator[Path]:
    for place in CRONTABS:
        if not os.access(place, os.R_OK, effective_ids=True) and place.exists():
            raise _unread(place)
        if place.is_dir():
            yield from sorted(path for path in place.iterdir() if path.is_file())
        elif place.is_file():
            yield place


def _scripts() -> Iterator[Path]:
    for place in CRON_SCRIPTS:
        if place.is_dir():
            found = (path for path in sorted(place.iterdir()) if path.is_file())
            yield from (path for path in found if path.stat().st_mode & 0o111)


def _lines(file: Path) -> list[str]:
    """Return the lines as cron parts them: at line feeds alone, whatever else is in them."""
    try:
        return file.read_bytes().decode("utf-8", "surrogateescape").split("\n")
    except OSError as error:
        raise _unread(file) from error


def _unread(place: Path) -> ConfigurationError:
    return ConfigurationError(
        f"{place} cannot be read, so nobody knows whether the predecessors' cron job still runs;"
        " nothing was changed. Run it as root."
    )
