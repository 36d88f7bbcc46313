"""Keeps OneData mounted for an instance, by oneclient in the foreground.

It is the unit's main process, so that it, and not the client, gets SIGTERM: the client would leave
by a lazy unmount and lose what it had not sent. The token goes from systemd's credential into the
client's environment, which its own user alone can read, and nowhere else.
"""

from __future__ import annotations

import errno
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

from onesync.errors import ConfigurationError, MountNotThere
from onesync.instance import Instance, Oneclient, file_of, read
from onesync.mounts import TABLE, is_mount_point, without_links
from onesync.systemd import STOP_SIGNALS, Notifier

_BUSY_SECONDS = 5.0
"""So long an unmount is refused because of open files before it is made all the same."""
_LAST_SECONDS = 60.0
"""So long the client may take to send what it holds after the unmount."""
_USED_SECONDS = 5.0
"""The same where files are still open, for it ends with those alone. An onesync that runs waits for
the next mount, and sends anew what it was writing."""
_DEAD = (errno.ENOTCONN, errno.ECONNABORTED)


def keep_mounted(name: str) -> None:
    """Mount OneData and keep it until SIGTERM.

    Raises ConfigurationError, and MountNotThere, after which it is tried again.
    """
    instance = read(name)
    if instance.oneclient is None:
        raise ConfigurationError(
            f"{file_of(name)} has no host in [oneclient], so there is nothing to mount; nothing was"
            " changed."
        )
    point = without_links(instance.oneclient.mount_point)  # fusermount follows none at its end
    _clear(point)
    waiting = _Waiting()
    client = _started(instance, replace(instance.oneclient, mount_point=point), _token(name))
    waiting.watch(client)
    while not is_mount_point(point) and client.poll() is None and not waiting.is_asked:
        waiting.wait(None)
    if client.poll() is None and not waiting.is_asked:
        Notifier().ready()
        Notifier().status(f"OneData is mounted at {point}")
        waiting.wait_for_end(client)
    if not waiting.is_asked:
        raise _ended(instance, point, client.returncode)
    _end(client, point, waiting)


class _Waiting:
    """Sleeps until a stop is asked for, the client ended, or something was mounted."""

    def __init__(self) -> None:
        self.is_asked = False
        self._poll = select.poll()
        awake, signals = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(signals)
        for number in STOP_SIGNALS:
            signal.signal(number, self._ask)
        self._poll.register(awake, select.POLLIN)
        self._awake = awake
        self._table = open(TABLE, "rb")  # noqa: SIM115 - for as long as the process lives
        self._poll.register(self._table, select.POLLPRI)

    def _ask(self, *_: object) -> None:
        self.is_asked = True

    def watch(self, client: subprocess.Popen[bytes]) -> None:
        """Wake at its end, too."""
        self._poll.register(os.pidfd_open(client.pid), select.POLLIN)

    def wait(self, seconds: float | None) -> None:
        """Sleep until something happens."""
        for fd, _ in self._poll.poll(None if seconds is None else seconds * 1000):
            if fd == self._awake:
                os.read(fd, 16)

    def wait_for_end(self, client: subprocess.Popen[bytes]) -> None:
        """Sleep until the client ended or a stop was asked for."""
        while client.poll() is None and not self.is_asked:
            self.wait(None)


def _token(name: str) -> str:
    place = f"{os.environ.get('CREDENTIALS_DIRECTORY', '')}/token"
    try:
        with open(place, encoding="ascii") as file:
            token = file.read().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise MountNotThere(
            f"The access token cannot be read ({error}); nothing was mounted. Put it into"
            f" {file_of(name, 'token')}; oneclient@{name} passes it on."
        ) from error
    if not token:
        raise MountNotThere(f"{file_of(name, 'token')} is empty; put the access token there.")
    return token


def _started(instance: Instance, client: Oneclient, token: str) -> subprocess.Popen[bytes]:
    words = ["oneclient", "-f", "-H", client.host]
    if not any(word.startswith("--provider-timeout") for word in client.options):
        # What onesync waits for one call, or the client would go on with it when onesync gave up.
        words += ["--provider-timeout", str(max(1, int(instance.patience)))]
    environment = os.environ | {"ONECLIENT_ACCESS_TOKEN": token}
    try:
        return subprocess.Popen([*words, *client.options, client.mount_point], env=environment)
    except OSError as error:
        raise MountNotThere(
            f"oneclient cannot be started ({error.strerror}); nothing was mounted. Install it."
        ) from error


def _clear(point: str) -> None:
    """Take away a mount whose client died; refuse any other."""
    while (found := _look(point)) in _DEAD:
        if (reason := _fusermount("-u", point)) and (reason := _fusermount("-uz", point)):
            raise MountNotThere(f"The dead mount at {point} cannot be taken away: {reason}")
    if found == errno.ENOENT:
        raise MountNotThere(f"The mount point {point} is not there. Make it, as the user's own.")
    if is_mount_point(point):
        raise MountNotThere(
            f"Something is mounted at {point} already; nothing was changed. Unmount it, or name"
            " another mount_point."
        )


def _look(point: str) -> int:
    try:
        os.stat(point)
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def _end(client: subprocess.Popen[bytes], point: str, waiting: _Waiting) -> None:
    """Unmount, and let the client send what it holds; one that has not mounted yet just ends."""
    if not is_mount_point(point):
        client.terminate()
    is_used = _unmount(point, waiting)
    try:
        client.wait(_USED_SECONDS if is_used else _LAST_SECONDS)
    except subprocess.TimeoutExpired:
        sys.stderr.write("oneclient is killed: it did not end after its unmount\n")
        client.kill()
        client.wait()


def _unmount(point: str, waiting: _Waiting) -> bool:
    """Unmount as soon as nobody uses it, or lazily when that does not come; returns which."""
    last = time.monotonic() + _BUSY_SECONDS
    while is_mount_point(point):
        is_last = time.monotonic() >= last
        reason = _fusermount("-uz" if is_last else "-u", point)
        if reason and is_last:
            raise MountNotThere(f"{point} cannot be unmounted: {reason}")
        if is_last:
            return True
        if reason:
            waiting.wait(0.2)
    return False


def _ended(instance: Instance, point: str, code: int) -> MountNotThere:
    how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
    return MountNotThere(
        f"oneclient ended {how}, so {point} is not mounted; local data are safe. What it said"
        " stands above. A token that is wrong or has expired is mended in"
        f" {file_of(instance.name, 'token')}; it is tried again by itself."
    )


def _fusermount(flag: str, point: str) -> str:
    """Unmount; returns why not, or ""."""
    program = shutil.which("fusermount3") or "fusermount"
    done = subprocess.run(
        [program, flag, "--", point], capture_output=True, check=False, text=True, errors="replace"
    )
    return "" if done.returncode == 0 else done.stderr.strip() or f"exit code {done.returncode}"
