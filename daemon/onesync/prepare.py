"""What root does before an instance starts: the rest runs as the workload's user, who could not.

It looks whether that user is there, for systemd itself only says "No such process", and gives him
the directories that are missing.
"""

from __future__ import annotations

import os
import pwd
import stat

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
    _make(instance.working_dir, user)
    if instance.oneclient is None:
        return
    if not is_mount_point(instance.oneclient.mount_point):
        _make(instance.oneclient.mount_point, user)
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


def _make(path: str, user: pwd.struct_passwd) -> None:
    """Give the user a directory that is missing, or root's and empty; what is above is made, too.

    Only where nobody but root could have put something in the way; else the user makes it himself,
    and onesync says that it is not there.
    """
    if not _is_roots(_existing(path)):
        return
    os.makedirs(path, exist_ok=True)
    if not os.listdir(path):
        os.chown(path, user.pw_uid, user.pw_gid, follow_symlinks=False)


def _existing(path: str) -> str:
    while not os.path.lexists(path):
        path = os.path.dirname(path)
    return path


def _is_roots(path: str) -> bool:
    """Whether root alone can change ``path`` and all directories above it."""
    found = os.lstat(path)
    is_safe = stat.S_ISDIR(found.st_mode) and found.st_uid == 0 and not found.st_mode & 0o022
    return is_safe and (path == "/" or _is_roots(os.path.dirname(path)))
