"""The daemon, from its configuration to its exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from onesync import instance as units
from onesync.inspect import had_copy
from onesync.journal import open_log
from onesync.mount import refuse_private
from onesync.reader import load_again
from onesync.service import Service
from onesync.settings import Settings, check_directories, check_user, note_state_dir


def run_daemon(loaded: Callable[[], Settings], config: Path | None, instance: str | None) -> None:
    """Deploy, keep in sync, undeploy; ends the process with the exit code.

    ``loaded`` returns the settings, which were begun to be read before all this was imported.
    """
    settings = loaded()
    # A reload may come when nothing stands any more where we were started.
    place = None if config is None else config.absolute()
    open_log(settings.metrics.folder)
    if instance is not None:
        units.read(instance)  # what the unit could not serve
    check_user(settings, is_daemon=True)
    if settings.mount.require_fuse:
        refuse_private(settings.onedata_dir)
    check_directories(settings, copy_may_be_gone=had_copy(settings))
    note_state_dir(settings.state_dir)
    code = Service(settings, lambda: load_again(place, instance)).run()
    sys.stdout.flush()
    # A thread may be stuck on a hung mount's child: nothing that follows may wait for it.
    os._exit(code)
