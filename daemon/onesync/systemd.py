"""Talks to systemd: readiness, status, watchdog, patience, and what the machine is about to do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection
from pathlib import Path

import sdnotify

STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT}
"""What systemd or a person sends for an orderly stop."""

JOURNAL = "/run/systemd/journal/socket"
KERNEL_LOG = "/dev/kmsg"
BOOTED = "/run/systemd/system"
"""Is there where systemd booted the machine (sd_booted(3))."""

_JOBS_SECONDS = 60.0
_JOBS_PAUSE_SECONDS = 1.0

RELOAD_SIGNAL = signal.SIGHUP
"""What systemd or a person sends when the configuration changed."""


def hold_signals() -> None:
    """Let a stop, or a reload, wait from now on until the service takes it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS | {RELOAD_SIGNAL})


def tell(unit: str, text: str) -> None:
    """Log a sentence about a unit, as root: 'systemctl status' shows it with the unit's own lines.

    Before journald runs the kernel's log takes it; where there is none, whoever started us.
    """
    from logging_journald import JournaldTransport

    told = {
        "MESSAGE": text,
        "PRIORITY": 3,
        "SYSLOG_IDENTIFIER": "onesync",
        "OBJECT_SYSTEMD_UNIT": unit,
    }
    try:
        JournaldTransport(Path(JOURNAL)).send(told.items())
    except OSError:
        line = f"<3>onesync: {unit}: {text}\n"
        try:
            log = os.open(KERNEL_LOG, os.O_WRONLY | os.O_CLOEXEC)
        except OSError:  # as in a container
            sys.stderr.write(line)
            return
        try:
            os.write(log, line.encode())
        finally:
            os.close(log)


class Notifier:
    """Messages to systemd; without systemd they go nowhere. Any thread."""

    def __init__(self) -> None:
        """Read NOTIFY_SOCKET and WATCHDOG_USEC from the environment."""
        self._socket = sdnotify.SystemdNotifier()
        period = os.environ.get("WATCHDOG_USEC", "")
        self._every = int(period) / 2e6 if period.isdecimal() else None
        self._pinged = float("-inf")

    def ready(self) -> None:
        """Tell that the working copy is deployed."""
        self._socket.notify("READY=1")

    def status(self, text: str) -> None:
        """Show one line in ``systemctl status``."""
        self._socket.notify(f"STATUS={text}")

    def stopping(self) -> None:
        """Tell that the final flush began."""
        self._socket.notify("STOPPING=1")

    def extend(self, seconds: float) -> None:
        """Ask for patience: start or stop may take ``seconds`` more from now."""
        self._socket.notify(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def watchdog(self) -> None:
        """Tell that the daemon lives, at most twice per watchdog period."""
        now = time.monotonic()
        if self._every is not None and now - self._pinged >= self._every:
            self._pinged = now
            self._socket.notify("WATCHDOG=1")

    def next_due(self) -> float | None:
        """Return in how many seconds ``watchdog`` has something to tell; None where nobody asks."""
        if self._every is None:
            return None
        return max(0.0, self._pinged + self._every - time.monotonic())


def unit_properties(unit: str, *names: str) -> dict[str, str]:
    """Return what systemd says of a unit; empty where there is no systemd or no such unit."""
    wanted = ["LoadState", *names]
    try:
        done = subprocess.run(
            ["systemctl", "show", "-p", ",".join(wanted), "--", unit],
            capture_output=True,
            timeout=5,
            check=False,
            text=True,
        )
    except (OSError, subprocess.TimeoutExpired):
        return {}
    found = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    return found if found.get("LoadState") == "loaded" else {}


def shutdown_job() -> str | None:
    """Return ``reboot`` or ``poweroff`` when the machine is on its way there, else None.

    A loaded node's systemd may answer late, or not at the first time. Raises TimeoutError where it
    does not answer for a minute.
    """
    deadline = time.monotonic() + _JOBS_SECONDS
    while os.path.isdir(BOOTED):
        left = deadline - time.monotonic()
        try:
            done = subprocess.run(
                ["systemctl", "list-jobs", "--no-legend", "--plain"],
                capture_output=True,
                timeout=max(0.0, left),
                check=False,
                text=True,
            )
        except subprocess.TimeoutExpired as error:
            raise TimeoutError("systemd does not tell its jobs") from error
        except OSError:
            return None
        if done.returncode == 0:
            return kind_of_shutdown(done.stdout.split())
        time.sleep(_JOBS_PAUSE_SECONDS)
    return None


def kind_of_shutdown(units: Collection[str]) -> str | None:
    """Return ``reboot`` or ``poweroff`` where one of ``units`` means that, else None."""
    if {"reboot.target", "kexec.target", "soft-reboot.target"} & set(units):
        return "reboot"
    return "poweroff" if {"poweroff.target", "halt.target"} & set(units) else None
