"""Tries what a service may not do, and prints as JSON how each went: "done", or the errno's name.

Nothing of it stays. ``python probe.py DIRECTORY GROUP``: where files can be made, and the unit's
control group as a directory.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import socket
import sys
from collections.abc import Callable
from contextlib import suppress

_libc = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWUSER = 0x10000000
_PTRACE_CONT = 7


def _write(path: str) -> None:
    with open(path, "w"):
        pass
    os.unlink(path)


def _checked(result: int) -> None:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _trace_nobody() -> None:
    with suppress(ProcessLookupError):  # the call was let through, and there is no such process
        _checked(_libc.ptrace(_PTRACE_CONT, 0, 0, 0))


def _see(path: str) -> None:
    if os.stat(path).st_mode & 0o777 == 0:  # what systemd puts over a path that is inaccessible
        raise PermissionError(errno.EACCES, "inaccessible", path)


def _make_directory(path: str) -> None:
    os.mkdir(path)
    os.rmdir(path)


def attempts(place: str, group: str) -> dict[str, Callable[[], object]]:
    """Return what is tried, by the line of the unit that forbids it."""
    own = f"{place}/.probe"

    def changed(change: Callable[[str], None]) -> None:
        with open(own, "w"):
            pass
        try:
            change(own)
        finally:
            os.unlink(own)

    executable = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
    return {
        "ProtectSystem": lambda: _write("/etc/probe"),
        "ProtectSystem beside the working directory": lambda: _write("/srv/provider/probe"),
        "ProtectHome": lambda: os.listdir("/home/scipion"),
        "PrivateTmp": lambda: os.stat("/tmp/of-the-node"),
        "PrivateDevices": lambda: os.stat("/dev/fuse"),
        "ProtectProc": lambda: os.stat("/proc/1"),
        "ProtectControlGroups": lambda: _make_directory(f"{group}/probe"),
        "ProtectKernelLogs": lambda: _see("/proc/kmsg"),
        "ProtectKernelModules": lambda: _see("/usr/lib/modules"),
        "RestrictAddressFamilies": lambda: socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW
        ).close(),
        "MemoryDenyWriteExecute": lambda: mmap.mmap(-1, 4096, prot=executable).close(),
        "RestrictRealtime": lambda: os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1)),
        "RestrictSUIDSGID": lambda: changed(lambda path: os.chmod(path, 0o4700)),
        "LockPersonality": lambda: _checked(_libc.personality(0x0400000)),
        "SystemCallFilter @system-service": _trace_nobody,
        "SystemCallFilter @privileged": lambda: changed(lambda path: os.chown(path, -1, -1)),
        "SystemCallFilter @resources": lambda: os.sched_setaffinity(0, os.sched_getaffinity(0)),
        "the working directory": lambda: _write(own),
        # The last: in a namespace of its own root is somebody else.
        "RestrictNamespaces": lambda: _checked(_libc.unshare(_CLONE_NEWUSER)),
    }


def main() -> None:
    """Try all."""
    told = {}
    for name, attempt in attempts(*sys.argv[1:]).items():
        try:
            attempt()
            told[name] = "done"
        except OSError as error:
            told[name] = errno.errorcode.get(error.errno or 0, str(error))
    told["umask"] = oct(os.umask(0))
    told |= {space: os.readlink(f"/proc/self/ns/{space}") for space in ("ipc", "uts")}
    print(json.dumps(told))  # noqa: T201 - it answers on standard output


if __name__ == "__main__":
    main()
