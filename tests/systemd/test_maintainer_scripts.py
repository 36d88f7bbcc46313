"""The package's scripts where something fails under them: nobody may be there to look."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.systemd.nspawn import REPOSITORY

pytestmark = pytest.mark.systemd

LEFT = "/run/onesync.handed-over"


def run(script: str, argument: str, tmp_path: Path, systemctl: str) -> tuple[int, list[str]]:
    """Run a script under a /run of its own; returns its exit code and what was asked of systemd."""
    asked, programs = tmp_path / "asked", tmp_path / "bin"
    programs.mkdir(exist_ok=True)
    # find would look for modules of the package that this machine does not have.
    ways = {"systemctl": f'echo "$@" >> {asked}\n{systemctl}', "find": ":"}
    for name, way in ways.items():
        (programs / name).write_text(f"#!/bin/sh\n{way}\n")
        (programs / name).chmod(0o755)
    place = REPOSITORY / "packaging" / "debian" / f"onesync.{script}"
    steps = [
        "mount -t tmpfs none /run",
        "mkdir -p /run/systemd/system",
        f"echo onesync@p.service > {LEFT}",
        f"PATH={programs}:$PATH exec sh {place} {argument}",
    ]
    done = subprocess.run(["unshare", "--mount", "sh", "-ec", "\n".join(steps)], check=False)
    return done.returncode, asked.read_text().splitlines()


@pytest.mark.parametrize("fails", ["nothing", "daemon-reload"])
def test_who_left_for_an_upgrade_starts_again_whatever_fails(tmp_path: Path, fails: str) -> None:
    # This machine has no interpreter of the package either: compiling fails.
    code, asked = run("postinst", "configure", tmp_path, f'[ "$1" != {fails} ]')
    assert (code == 0) is (fails == "nothing")
    assert asked[-1] == "start --no-block onesync@p.service"


def test_an_upgrade_is_refused_where_systemd_does_not_say_what_runs(tmp_path: Path) -> None:
    code, asked = run("prerm", "upgrade", tmp_path, '[ "$1" != list-units ]')
    assert code != 0
    assert len(asked) == 1
