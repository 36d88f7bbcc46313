"""A working copy that is gone while the state of its deployment is there: refused, or given up.

As on a node whose disk does not outlive a reboot. What had not reached OneData is named, and
remembered in the index until the copy is back or given up. Engine's thread only.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from onesync import working_copy
from onesync.core.model import RelPath, show
from onesync.errors import StateDirFailed, WorkingCopyLost
from onesync.index import Index
from onesync.local import sync_directory

log = logging.getLogger(__name__)

FORMAT = 1
NAMED = 20


@dataclass(frozen=True, slots=True)
class Unsynced:
    """What a working copy had not sent yet when it was seen last.

    Attributes:
        checkpoint: the newest one.
        paths: how many paths waited; None where nobody knows.
        names: some of them, printable.
    """

    checkpoint: str | None
    paths: int | None
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, checkpoint: str | None, marked: int, paths: Iterable[RelPath]) -> Unsynced:
        """Return it from the dirty set: the number of marks and some of their paths."""
        names = [show(path) for path in paths]
        roots = names.count("")
        return cls(checkpoint, marked - roots, tuple(name for name in names if name))

    def sentence(self) -> str:
        """Return one sentence for a person."""
        head = f"OneData holds everything up to checkpoint {self.checkpoint}"
        if self.paths is None:
            return f"{head}; what came after it is not known."
        if not self.paths:
            return f"{head}, and nothing was known to wait."
        more = ", …" if self.paths > len(self.names) else ""
        return f"{head}; not yet there were {self.paths} paths: {', '.join(self.names)}{more}."


def remembered(index: Index, status: Mapping[str, Any] | None) -> Unsynced:
    """Return what was unsynced: as found when the loss was, or as the last life's status says."""
    noted = index.get("lost")
    if noted is not None:
        values = json.loads(noted)
        return Unsynced(values["checkpoint"], values["paths"], tuple(values["names"]))
    checkpoint = index.get("head_name")
    if status is None or "pending" not in status:
        return Unsynced(checkpoint, None)
    names = [name for name in status["pending"] if name != "."]
    count = status["pending_paths"] - (len(status["pending"]) - len(names))
    return Unsynced(checkpoint, count, tuple(names))


def refused(index: Index, lost: WorkingCopyLost, unsynced: Unsynced) -> WorkingCopyLost:
    """Remember what was unsynced and return the failure that names it."""
    _note(index, unsynced)
    return WorkingCopyLost(
        f"{lost} {unsynced.sentence()} Bring the directory back and start again; if it is lost for"
        ' good, set stagein.lost_copy to "restage" and start with an empty one.'
    )


def give_up(index: Index, root: bytes, state_dir: Path, unsynced: Unsynced) -> None:
    """Forget the lost copy, so that it is staged in anew; a report of what it had is kept.

    Raises Halted where something else stands in its place, WorkingCopyLost where no directory can
    be made there, StateDirFailed where the report cannot be kept.
    """
    _note(index, unsynced)  # the next start's status tells nothing of it any more
    try:
        os.mkdir(root)
    except FileExistsError:
        working_copy.refuse_foreign(root)
    except OSError as error:
        raise WorkingCopyLost(
            f"The working directory {show(root)} is gone and cannot be made anew"
            f" ({error.strerror}); nothing was changed. {unsynced.sentence()}"
        ) from error
    report = _reported(root, state_dir, unsynced)
    log.error(
        "the working copy was lost and is staged in anew; %s It is kept in %s.",
        unsynced.sentence(),
        report,
    )
    index.replace((), staged=None, root_inode=None, root_birth=None, lost=None)


def _note(index: Index, unsynced: Unsynced) -> None:
    if index.get("lost") is None:
        index.set(lost=json.dumps(asdict(unsynced)))


def _reported(root: bytes, state_dir: Path, unsynced: Unsynced) -> Path:
    """Keep a report durably under a name of its own, and return its path.

    Raises StateDirFailed where there is no room for it.
    """
    values = {"onesync": "lost", "format": FORMAT, "root": show(root), **asdict(unsynced)}
    begun = state_dir / "lost.new"
    try:
        with begun.open("w") as file:
            file.write(json.dumps(values, indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        report = begun.rename(_free_name(state_dir, f"lost-{unsynced.checkpoint}"))
        sync_directory(state_dir)
    except OSError as error:
        raise StateDirFailed(
            f"state_dir {state_dir} cannot be written ({error.strerror}), so what the lost working"
            " directory had not sent cannot be kept there; nothing was forgotten. Make room there"
            " or mend its disk, then start again."
        ) from error
    return report


def _free_name(state_dir: Path, stem: str) -> Path:
    """Return a name that no earlier loss of the same checkpoint has."""
    found, number = state_dir / f"{stem}.json", 1
    while found.exists():
        number += 1
        found = state_dir / f"{stem}-{number}.json"
    return found
