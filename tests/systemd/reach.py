"""Tries, as a process of a unit, the loopback and an address of the node that is not on it.

``python reach.py CGROUP``, as root; prints what was reached, as JSON.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import struct
import sys
from pathlib import Path

_SIOCSIFADDR = 0x8916
_ELSEWHERE = "10.1.1.1"


def _give_address() -> None:
    address = struct.pack("=HH4s8x", socket.AF_INET, 0, socket.inet_aton(_ELSEWHERE))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFADDR, struct.pack("16s16s8x", b"lo:1", address))


def _is_reached(address: str) -> bool:
    with socket.create_server((address, 0)) as server, socket.socket() as asking:
        asking.settimeout(1)
        try:
            asking.connect(server.getsockname())
        except OSError:
            return False
        return True


def main() -> None:
    """Join the unit and try."""
    _give_address()
    Path(sys.argv[1], "cgroup.procs").write_text(str(os.getpid()))
    told = {address: _is_reached(address) for address in ("127.0.0.1", _ELSEWHERE)}
    print(json.dumps(told))  # noqa: T201 - it answers on standard output


if __name__ == "__main__":
    main()
