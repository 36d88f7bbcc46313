"""What root does before an instance starts: the rest runs as the workload's user, who could not.

It looks whether that user is there, for systemd itself only says "No such process", and gives him
the directories that are missing.
"""

from __future__ import annotations

import os
import pwd

from onesync.directories import give
from onesync.errors import ConfigurationError
from onesync.instance import Instance, file_of, read
from onesync.mounts import is_mount_point
from onesync.systemd import tell


def prepare(name: str) -> None:
    """Prepare an instance. Raises ConfigurationError, which the journal of its unit has, too."""
    try:
        _prepare(read(name, for_root=True))
    except ConfigurationError as error:
        tell(f"onesync@{name}.service", str(error))
        raise


def _prepare(instance: Instance) -> None:
    try:
        user = pwd.getpwnam(instance.user)
    except KeyError:
        raise ConfigurationError(
            f"{file_of(instance.name)}: the user {instance.user} does not exist; nothing was"
            f' changed. Make him (adduser {instance.user}), or name another one: user = "NAME",'
            " then 'systemctl daemon-reload'."
        ) from None
    give(instance.working_dir, user)
    if instance.oneclient is None:
        return
    if not is_mount_point(instance.oneclient.mount_point):
        give(instance.oneclient.mount_point, user)
    token = file_of(instance.name, "token")
    if os.path.exists(token) and os.stat(token).st_mode & 0o077:
        raise ConfigurationError(
            f"{token} can be read by others; it is used all the same. Type: chmod 600 {token}"
        )
    if not os.path.exists(token):
        raise ConfigurationError(
            f"{token} is not there, so OneData cannot be mounted; nothing was changed. Put the"
            f" access token there: install -m 600 /dev/stdin {token}"
        )
