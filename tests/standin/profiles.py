"""The generations of OneData's client that the stand-in imitates."""

from __future__ import annotations

import errno
from dataclasses import dataclass

MEBIBYTE = 1024 * 1024


@dataclass(frozen=True)
class Profile:
    """How one generation behaves; the default is the plain one, which buffers nothing."""

    buffer: int = 0  # bytes that a handle holds back before it stores them; 0: none
    guid_xattr: str = ""  # the name of a file's identity; none: no extended attributes at all
    chown_error: int = errno.ENOSYS
    name_error: int = 0  # for names that are not UTF-8
    hidden: str = ""  # paths that no listing shows
    hangs_without_provider: bool = False  # else open handles and their buffers are dropped
    truncates_again: bool = False  # a handle opened anew after that repeats its O_TRUNC
    stores_before_truncate: bool = True
    write_sets_time_late: bool = False  # a write's time replaces one that was set after it
    keeps_later_time: bool = False  # a time older than the present one is not taken
    measures_space: bool = True  # statfs and st_blocks are not zero


PROFILES = {
    "plain": Profile(measures_space=False),
    "18.02": Profile(
        buffer=20 * MEBIBYTE,
        guid_xattr="org.onedata.uuid",
        chown_error=errno.EOPNOTSUPP,
        name_error=errno.EAGAIN,
        hidden=r"/\.__onedata__|####TO_DELETE",
        hangs_without_provider=True,
        stores_before_truncate=False,
        write_sets_time_late=True,
        measures_space=False,
    ),
    "21.02": Profile(
        buffer=20 * MEBIBYTE,
        guid_xattr="org.onedata.guid",
        chown_error=0,
        name_error=errno.EAGAIN,
        hidden=r"/\.__onedata__|####TO_DELETE",
        truncates_again=True,
        keeps_later_time=True,
    ),
}
