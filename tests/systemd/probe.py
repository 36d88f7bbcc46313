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
import signal
import socket
import struct
import subprocess
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


def _run_for_32_bits(path: str) -> None:
    """Run the smallest program of another architecture: it does nothing but exit."""
    code = b"\xb8\x01\x00\x00\x00\x31\xdb\xcd\x80"  # mov eax, 1; xor ebx, ebx; int 0x80
    place, heads = 0x08048000, 52 + 32
    size = heads + len(code)
    begin = b"\x7fELF\x01\x01\x01".ljust(16, b"\0")
    head = struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, place + heads, 52, 0, 0, 52, 32, 1, 0, 0, 0)
    part = struct.pack("<IIIIIIII", 1, 0, place, place, size, size, 5, 0x1000)
    with open(path, "wb") as file:
        file.write(begin + head + part + code)
    os.chmod(path, 0o700)
    if subprocess.run([path], check=False).returncode == -signal.SIGSYS:
        raise PermissionError(errno.EPERM, "killed by the filter", path)


def _is_writable(path: str) -> None:
    if os.statvfs(path).f_flag & os.ST_RDONLY:
        raise OSError(errno.EROFS, "read-only", path)


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
        "ProtectKernelTunables": lambda: _is_writable("/proc/sys/net"),
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
        "SystemCallArchitectures": lambda: changed(_run_for_32_bits),
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
