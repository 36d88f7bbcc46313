"""Whether what stands at the replica's path is the mount and the folder that we mean."""

from __future__ import annotations

import json
import logging
import os
import pwd
import re
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from onesync.core.model import STATUS_FOLDER
from onesync.core.trouble import judge
from onesync.errors import ConfigurationError, Halted, MountNotThere
from onesync.mounts import mount_of
from onesync.replica.door import Identity, Replica
from onesync.replica.folder import is_mounted

log = logging.getLogger(__name__)

FOLDER = STATUS_FOLDER + b"/folder.json"
_BEGUN = FOLDER + b".new"
FORMAT = 1
_ID = re.compile("[0-9a-f]{32}")
_TRUSTED_SECONDS = 30.0
"""So long a folder that looks the same is not asked for its name again."""


def refuse_private(path: Path) -> None:
    """Raise ConfigurationError where ``path`` lies on a FUSE mount that lets another user in only.

    Asks the kernel's table; a mount that is not there yet is somebody else's to notice.
    """
    owner = _only_user(path)
    if owner not in (None, os.geteuid()):
        raise ConfigurationError(
            f"The mount of {path} is the user {owner}'s and lets nobody else in, also not"
            f" {os.geteuid()}, as whom onesync runs; nothing was changed. Mount it as that user, or"
            " with '-o allow_other'."
        )


def go_as_owner(path: Path) -> None:
    """Be the one whom the mount of ``path`` lets in, if we are root, whom it does not."""
    owner = _only_user(path)
    if not owner or os.geteuid() != 0:
        return
    user = pwd.getpwuid(owner)
    os.initgroups(user.pw_name, user.pw_gid)
    os.setgid(user.pw_gid)
    os.setuid(user.pw_uid)


def _only_user(path: Path) -> int | None:
    """Return the only user whom the mount of ``path`` lets in; None where it has no such rule."""
    options = mount_of(str(path)).options
    owner = options.get("user_id")  # FUSE's alone
    return None if owner is None or "allow_other" in options else int(owner)


class Mount:
    """The identity of the mount and of the folder. One thread's, but for ``up``."""

    def __init__(
        self,
        replica: Replica,
        path: Path,
        require_fuse: bool,
        now: Callable[[], float],
        folder_id: Callable[[], str | None] = lambda: None,
    ) -> None:
        """Prepare; the mount is touched by the methods alone.

        ``now`` gives seconds of a clock that only rises; ``folder_id`` the folder that is meant,
        where another ``Mount`` knows it.
        """
        self._replica = replica
        self._path = path
        self._require_fuse = require_fuse
        self._now = now
        self._told_by = folder_id
        self._good: Identity | None = None
        self._trusted_since: float | None = None
        self.folder_id: str | None = None
        self.up = False

    def is_mounted(self) -> bool:
        """Return whether the mount that was looked at last is still there; any thread.

        Asks the kernel's table: a mount whose client died is still in it.
        """
        return self._good is None or is_mounted(self._good.mount)

    def look(self) -> Identity:
        """Look at what stands there, with one look-up. Raises MountNotThere, ConfigurationError."""
        self.up = False
        try:
            identity = self._replica.identify()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise MountNotThere(
                f"The OneData folder {self._path} cannot be reached ({error.strerror}); nothing was"
                " changed. Mount it; a daemon that is running goes on by itself."
            ) from error
        except OSError as error:
            raise MountNotThere(
                f"The OneData folder {self._path} cannot be reached: {judge(error).text}"
            ) from error
        if self._require_fuse and not identity.is_fuse:
            raise MountNotThere(
                f"{self._path} is not on a FUSE mount, so OneData is not mounted there; nothing was"
                " changed. Mount it, or set mount.require_fuse = false."
            )
        if self._require_fuse and identity.is_mount_root:
            raise ConfigurationError(
                f"{self._path} is the top of its mount, where OneData lists spaces; nothing was"
                " changed. Name a folder inside a space."
            )
        self.up = True
        return identity

    def open_folder(self, lost: str | None = None) -> str:
        """Return the folder's id; one without gets the id that it ``lost``, or a new one."""
        found = self.read_id()
        if found is None:
            found = lost or uuid.uuid4().hex
            content = {"onesync": "folder", "format": FORMAT, "folder_id": found}
            # Under another name first: a torn one would be refused by every node for ever.
            self._replica.remove(_BEGUN)
            self._replica.write_new(_BEGUN, json.dumps(content).encode())
            self._replica.rename(_BEGUN, FOLDER, is_file=True)
        self.folder_id = found
        return found

    def check(self) -> bool:
        """Raise MountNotThere unless the folder that was deployed still stands there.

        Returns whether it was mounted anew since the last check. Costs one look-up; folder.json is
        read where the mount or the folder's inode is another one, or was not for 30 s.
        """
        identity = self.look()
        since, self._trusted_since = self._trusted_since, None
        if since is None or identity != self._good or self._now() - since > _TRUSTED_SECONDS:
            self._refuse_another()
            since = self._now()
        anew = self._good is not None and identity.mount != self._good.mount
        if anew:
            log.warning("the mount was mounted anew")
        self._good, self._trusted_since = identity, since
        return anew

    def _refuse_another(self) -> None:
        """Raise MountNotThere where another folder stands, or one that cannot be told."""
        self.up = False
        wanted = self.folder_id or self._told_by()
        found = None
        with suppress(Halted):  # torn now, it was whole when the folder was deployed
            found = self.read_id()
        if wanted is not None and found != wanted:
            raise MountNotThere(
                f"{self._path} is not the folder that was deployed; nothing is written, local data"
                " are safe. Mount the right one."
            )
        self.up = True

    def read_id(self) -> str | None:
        """Return the id of the folder that stands there; None where it has none. Raises Halted."""
        try:
            content = self._replica.read(FOLDER)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            number, folder_id = _record_in(content)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise Halted(
                f"folder.json of the status folder cannot be read ({error!r}); nothing was changed."
                " Restore it from a backup, or remove it if this is the right folder."
            ) from error
        if number > FORMAT:
            raise Halted(
                f"The status folder has format {number}, which this onesync does not know; nothing"
                " was changed. Install a newer onesync."
            )
        return folder_id


def _record_in(content: bytes) -> tuple[int, str]:
    """Return format and id of folder.json. Raises ValueError and others where it has no such.

    Metrics and sentences carry the id, so it must be one that onesync makes.
    """
    found = json.loads(content)
    number, folder_id = int(found["format"]), str(found["folder_id"])
    if number <= FORMAT and not _ID.fullmatch(folder_id):
        raise ValueError("its id is none that onesync makes")
    return number, folder_id
