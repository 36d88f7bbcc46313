"""Stands for the program ``oneclient``: its arguments, its environment, its way to refuse a token.

``ONEDATA_STANDIN`` names a directory: ``token`` in it holds the token that the provider takes,
``backing`` what it stores. The switches of the mount are at ``/tmp/onedata-NAME``, by the mount
point's last part. As the real one it stays in the foreground with ``-f``, and SIGTERM makes it a
lazy unmount, whatever it has not sent.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from pathlib import Path

from tests.standin import onedata


def parsed(words: list[str]) -> argparse.Namespace:
    """Return what the command line says; what it does not, the environment does."""
    parser = argparse.ArgumentParser("oneclient", allow_abbrev=False)
    parser.add_argument("-f", "--foreground", action="store_true")
    parser.add_argument("-H", "--host", default=os.environ.get("ONECLIENT_PROVIDER_HOST"))
    parser.add_argument("-P", "--port", type=int, default=443)
    parser.add_argument("-t", "--token", default=os.environ.get("ONECLIENT_ACCESS_TOKEN"))
    parser.add_argument("-i", "--insecure", action="store_true")
    parser.add_argument("-o", "--opt", action="append", default=[])
    parser.add_argument("--space", action="append", default=[])
    parser.add_argument("--provider-timeout", type=int, default=120)
    parser.add_argument("--force-proxy-io", action="store_true")
    parser.add_argument("mountpoint", nargs="?", default=os.environ.get("ONECLIENT_MOUNTPOINT"))
    return parser.parse_args(words)


def main() -> None:
    """Connect, mount, and serve until unmounted."""
    wanted = parsed(sys.argv[1:])
    if not wanted.host or not wanted.mountpoint:
        sys.exit("the option '--host' and a mount point are required but missing")
    if not wanted.foreground:
        sys.exit("the stand-in knows the foreground alone")
    provider = Path(os.environ["ONEDATA_STANDIN"])
    sys.stderr.write(f"Connecting to provider '{wanted.host}:{wanted.port}'...\n")
    if wanted.token != (provider / "token").read_text().strip():
        sys.stderr.write("Cannot connect to Oneprovider - authentication error: invalid token\n")
        sys.exit(1)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_leave, args=(wanted.mountpoint,), daemon=True).start()
    control = Path("/tmp") / f"onedata-{Path(wanted.mountpoint).name}"
    control.unlink(missing_ok=True)
    sys.stderr.write(f"Oneclient has been successfully mounted in '{wanted.mountpoint}'.\n")
    sys.argv[1:] = [str(provider / "backing"), wanted.mountpoint, str(control)]
    onedata.main()


def _leave(mount_point: str) -> None:
    signal.sigwait({signal.SIGTERM})
    sys.stderr.write("SIGTERM: lazy unmount\n")
    os.execvp("fusermount3", ["fusermount3", "-uz", mount_point])


if __name__ == "__main__":
    main()
