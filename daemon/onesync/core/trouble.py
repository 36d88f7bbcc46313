"""What the program does about each error and event: the one table. ARCHITECTURE.md shows it.

Whoever meets an error asks ``judge``. An error of this machine's own disks comes as
``LocalError``; every other ``OSError`` is the mount's.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from onesync.errors import (
    ConfigurationError,
    Halted,
    IndexDamaged,
    LocalError,
    LockLost,
    MountHung,
    MountNotThere,
    NotArrived,
    StateDirFailed,
    Suspended,
)


class Reaction(StrEnum):
    """What the program does.

    Attributes:
        AGAIN: the batch is done again, the first time at once.
        LATER: the batch is done again, each time after a longer pause.
        SUSPECT: as LATER, but first what was pushed since the last verified checkpoint is read
            back, and what differs is sent anew.
        WAIT: as SUSPECT, once the mount and the folder are there again; nothing is written before.
        PERSON: as LATER, but only a person can help: the status says how.
        PATH: this one path is left out and has a problem; the rest goes on.
        HALT: nothing more is written; the program ends.
    """

    AGAIN = "again"
    LATER = "later"
    SUSPECT = "suspect"
    WAIT = "wait"
    PERSON = "person"
    PATH = "path"
    HALT = "halt"


@dataclass(frozen=True, slots=True)
class Trouble:
    """An error as it is met.

    Attributes:
        kind: a short stable word, a metric's label: an errno's name, or an error's.
        reaction: what to do.
        told: what happened and what is safe.
        remedy: what a person must do, without its full stop; empty where nobody must.
        reason: the kernel's own words.
    """

    kind: str
    reaction: Reaction
    told: str
    remedy: str = ""
    reason: str = ""

    @property
    def text(self) -> str:
        """What a person reads while the program runs, and goes on by itself."""
        return self.text_with("it goes on by itself")

    def text_with(self, follows: str) -> str:
        """What a person reads; ``follows`` says what happens when the remedy is done."""
        sentences = [self.told]
        if self.remedy:
            sentences.append(f"{self.remedy}; {follows}.")
        if self.reason:
            sentences.append(f"({self.reason})")
        return " ".join(sentences)

    @property
    def is_suspicious(self) -> bool:
        """Whether OneData may have dropped what it had confirmed."""
        return self.reaction in (Reaction.SUSPECT, Reaction.WAIT)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; ``told`` is empty where the error brings its own sentence."""

    reaction: Reaction
    told: str = ""
    remedy: str = ""


def _rows(
    numbers: Iterable[int], reaction: Reaction, told: str, remedy: str = ""
) -> dict[int, Row]:
    return dict.fromkeys(numbers, Row(reaction, told, remedy))


_UNKNOWN = Row(
    Reaction.SUSPECT,
    "OneData answered with an error that nobody knows; nothing is lost, it is tried again.",
)

FULL = (errno.ENOSPC, errno.EDQUOT)
MISSING = (errno.ENOENT, errno.ENOTDIR)

MOUNT: Mapping[int, Row] = {
    **_rows(
        (errno.EAGAIN, errno.ECANCELED, errno.EBUSY, errno.EINTR),
        Reaction.AGAIN,
        "OneData is busy or its storage is not healthy; nothing is lost, it is tried again.",
    ),
    **_rows(
        (errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.ELOOP,
         errno.EXDEV),
        Reaction.LATER,
        "The folder in OneData was changed meanwhile by somebody else; nothing is lost, the batch"
        " is done again.",
    ),
    **_rows(
        (errno.ETIMEDOUT, errno.ECONNABORTED, errno.ECONNRESET, errno.EIO, errno.EPROTO,
         errno.EBADF, errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTUNREACH),
        Reaction.SUSPECT,
        "OneData's client lost its connection or gave up; local data are safe, what was pushed"
        " lately is read back and the rest follows by itself. If it stays so, look whether the"
        " provider is up and the client's token is valid.",
    ),
    **_rows(
        (errno.ENOTCONN, errno.ESTALE, errno.ENODEV, errno.ENXIO),
        Reaction.WAIT,
        "OneData's client died or was mounted anew; local data are safe, nothing is written until"
        " the folder is mounted again.",
        "Mount it",
    ),
    **_rows(
        FULL,
        Reaction.PERSON,
        "OneData has no space left for this folder; nothing is lost, what changed waits here.",
        "Raise the quota, or delete something here or in OneData",
    ),
    **_rows(
        (errno.EROFS,),
        Reaction.PERSON,
        "OneData lets this folder be read only; nothing is lost, what changed waits here.",
        "Make it writable",
    ),
    **_rows(
        (errno.EACCES, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS),
        Reaction.PERSON,
        "OneData refuses the writing; nothing is lost, what changed waits here.",
        "Look at the rights and the token of the mount",
    ),
    **_rows(
        (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ, errno.ERANGE, errno.EFBIG),
        Reaction.PATH,
        "OneData does not take a file of this name or size; it stays here, everything else is"
        " pushed. Rename it.",
    ),
}  # fmt: skip
"""By the errno of a call on the mount."""

_LOCAL_UNKNOWN = Row(
    Reaction.PERSON,
    "This node's own disk fails; what is in OneData stays as it is.",
    "Look at the working directory's and the state directory's file systems",
)

LOCAL: Mapping[int, Row] = {
    **_rows(
        FULL,
        Reaction.PERSON,
        "This node's own disk is full; what is in OneData stays as it is.",
        "Make room in the working directory's and the state directory's file systems",
    ),
    **_rows(
        (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EINTR),
        Reaction.AGAIN,
        "The working copy changed while it was read; it is looked at again.",
    ),
    **_rows(
        (errno.EACCES, errno.EPERM),
        Reaction.PATH,
        "A file of the working copy cannot be read; everything else is pushed. Mend its mode.",
    ),
}
"""By the errno of a call on the working copy or the state directory."""

SOURCE: Mapping[int, Row] = {
    **_rows(
        (errno.EIO, errno.EUCLEAN, errno.EBADMSG, errno.ENODATA, errno.EREMOTEIO, errno.ENXIO,
         errno.ESTALE, errno.ENOTCONN, errno.ENOKEY),
        Reaction.PATH,
        "The disk does not give the content of this file of the working copy; everything else is"
        " pushed, and what OneData has of it stays. Look at the disk, and write the file anew or"
        " remove it.",
    ),
}  # fmt: skip
"""By the errno of a call on one file of the working copy, where ``LOCAL`` has another row."""

EVENTS: Mapping[type[Exception], Row] = {
    Suspended: Row(Reaction.WAIT),
    MountHung: Row(Reaction.WAIT),
    MountNotThere: Row(Reaction.WAIT),
    NotArrived: Row(Reaction.SUSPECT),
    LockLost: Row(Reaction.HALT),
    Halted: Row(Reaction.HALT),
    IndexDamaged: Row(Reaction.HALT),
    StateDirFailed: Row(Reaction.PERSON),
    ConfigurationError: Row(Reaction.HALT),
    Exception: Row(Reaction.LATER),
}
"""By what happened, the special before the general."""

_PAUSES: Mapping[Reaction, tuple[float, ...]] = {
    Reaction.AGAIN: (0.1, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0),
    # To look whether it is there again is one call.
    Reaction.WAIT: (1.0, 2.0, 5.0, 10.0),
    Reaction.PERSON: (1.0, 2.0, 5.0, 10.0, 30.0),
}
_BACKOFF = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0)


def judge(error: Exception) -> Trouble:
    """Return what the table says of ``error``."""
    if isinstance(error, LocalError):
        row = LOCAL.get(error.errno or 0, _LOCAL_UNKNOWN)
        return _trouble("local_" + _code(error), row, error)
    if isinstance(error, OSError):
        return _trouble(_code(error), of_mount(error.errno), error)
    row = next(row for kind, row in EVENTS.items() if isinstance(error, kind))
    return Trouble(type(error).__name__, row.reaction, str(error))


def judge_source(error: OSError) -> Trouble:
    """Do as ``judge`` of an error of this machine, met while one file was read to be sent."""
    row = SOURCE.get(error.errno or 0) or LOCAL.get(error.errno or 0, _LOCAL_UNKNOWN)
    return _trouble("local_" + _code(error), row, error)


def _trouble(kind: str, row: Row, error: OSError) -> Trouble:
    return Trouble(kind, row.reaction, row.told, row.remedy, error.strerror or str(error))


def is_full(error: BaseException) -> bool:
    """Whether the replica has no space left."""
    if not isinstance(error, OSError) or isinstance(error, LocalError):
        return False
    return error.errno in FULL


def is_missing(error: BaseException) -> bool:
    """Whether something that a call needs is not in the replica."""
    if not isinstance(error, OSError) or isinstance(error, LocalError):
        return False
    return error.errno in MISSING


def of_mount(number: int | None) -> Row:
    """Return what the table says of a call on the mount that failed with this errno."""
    return MOUNT.get(number or 0, _UNKNOWN)


def pause_seconds(reaction: Reaction, failures: int) -> float:
    """Return how long to wait after so many failures in a row (at least one)."""
    pauses = _PAUSES.get(reaction, _BACKOFF)
    return pauses[min(failures, len(pauses)) - 1]


def _code(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, "unknown")
