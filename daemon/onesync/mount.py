"""Whether what stands at the replica's path is the mount and the folder that we mean."""

from __future__ import annotations

import json
import logging
import uuid
from contextlib import suppress
from pathlib import Path

from onesync.core.model import STATUS_FOLDER
from onesync.errors import ConfigurationError, Halted, MountNotThere
from onesync.replica.door import Replica

log = logging.getLogger(__name__)

FOLDER = STATUS_FOLDER + b"/folder.json"
_BEGUN = FOLDER + b".new"
FORMAT = 1


class Mount:
    """The identity of the mount and of the folder. Engine's thread, but for ``up``."""

    def __init__(self, replica: Replica, path: Path, require_fuse: bool) -> None:
        """Prepare; the mount is touched by the methods alone."""
        self._replica = replica
        self._path = path
        self._require_fuse = require_fuse
        self._device: int | None = None
        self.folder_id: str | None = None
        self.up = False

    def look(self) -> None:
        """Look at what stands there. Raises MountNotThere, or ConfigurationError."""
        self.up = False
        try:
            identity = self._replica.identify()
        except OSError as error:
            raise MountNotThere(
                f"The OneData folder {self._path} cannot be reached ({error.strerror}); nothing was"
                " changed. Mount it, then start again."
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
        if self._device is not None and identity.device != self._device:
            log.warning("the mount was mounted anew")
        self._device = identity.device
        self.up = True

    def refuse_newer(self) -> None:
        """Raise Halted where a newer onesync made the status folder; nothing is changed."""
        self._read()

    def open_folder(self) -> str:
        """Return the folder's id; a folder without one gets it."""
        found = self._read()
        if found is None:
            found = uuid.uuid4().hex
            content = {"onesync": "folder", "format": FORMAT, "folder_id": found}
            # Under another name first: a torn one would be refused by every node for ever.
            self._replica.remove(_BEGUN)
            self._replica.write_new(_BEGUN, json.dumps(content).encode())
            self._replica.rename(_BEGUN, FOLDER, is_file=True)
        self.folder_id = found
        return found

    def check(self) -> None:
        """Raise MountNotThere unless the folder that was deployed still stands there."""
        self.look()
        found = None
        with suppress(FileNotFoundError):
            found = self._read()
        if found != self.folder_id:
            self.up = False
            raise MountNotThere(
                f"{self._path} is not the folder that was deployed; nothing is written, local data"
                " are safe. Mount the right one."
            )

    def _read(self) -> str | None:
        try:
            content = self._replica.read(FOLDER)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            found = json.loads(content)
            number, folder_id = int(found["format"]), str(found["folder_id"])
        except (ValueError, KeyError, TypeError) as error:
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
