"""Directories that root makes for a user."""

from __future__ import annotations

import os
import pwd
import stat


def give(path: str, user: pwd.struct_passwd, mode: int = 0o777) -> None:
    """Give the user a directory that is missing, or root's and empty; what is above is made, too.

    Only where nobody but root could have put something in the way; else the user makes it himself,
    or is told that it is not there. ``mode`` as of mkdir(2), for one that is missing.
    """
    if not _is_roots(_existing(path)):
        return
    os.makedirs(path, mode, exist_ok=True)
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
