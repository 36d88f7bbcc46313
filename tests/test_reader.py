"""The daemon has its configuration read by others, and is without what that takes."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from onesync import configuration
from onesync.errors import ConfigurationError, OnesyncError
from onesync.reader import begin_to_load, load_again
from onesync.settings import Settings
from tests.node import Node

Load = Callable[[Path | None, str | None], Settings]


def begun(config: Path | None, instance: str | None) -> Settings:
    return begin_to_load(config, instance)()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return Node(tmp_path, tmp_path / "store").config


def imported(program: str) -> set[str]:
    """Return the names of the packages that a program has imported at its end."""
    program += "; import sys; print(*{name.partition('.')[0] for name in sys.modules})"
    command = [sys.executable, "-c", program]
    return set(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())


def test_the_daemon_is_without_what_is_used_once() -> None:
    found = imported("import onesync.reader, onesync.daemon")
    assert not found & {"pydantic", "pydantic_core", "asyncio", "typer", "rich"}


def test_a_process_for_the_mount_has_little() -> None:
    found = imported("import onesync.replica.child")
    heavy = {"concurrent", "http", "logging", "prometheus_client", "pydantic", "sqlite3", "ssl"}
    assert not found & (heavy | {"subprocess"})


def test_a_daemon_stays_without_it_after_a_reload(nodes: list[Node]) -> None:
    node, _ = nodes
    node.is_forked = False  # the nursery has imported everything
    node.deploy()
    assert node.process is not None
    maps = Path(f"/proc/{node.process.pid}/maps")
    assert "_pydantic_core" not in maps.read_text()
    node.configure(batch__rescan_seconds=7)
    assert node.command("reload").stdout == "Changed: batch.rescan_seconds.\n"
    assert "_pydantic_core" not in maps.read_text()
    with node.config.open("a") as more:
        more.write("[push]\nworkers = 0\n")
    refused = node.command("reload")
    assert "push.workers: Input should be greater" in refused.stderr
    assert node.end() == 0, node.log()


@pytest.mark.parametrize("load", [begun, load_again])
def test_settings_come_as_they_were_read_and_nothing_of_pydantic_with_them(
    config: Path, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    with config.open("a") as more:
        more.write('[push]\nbandwidth_limit = "10 MB"\nexclude = ["*.tmp"]\n')
    monkeypatch.setenv("ONESYNC_DEPLOYMENT__UNTIL", "2027-01-01T00:00:00+01:00")
    monkeypatch.setenv("ONESYNC_PUSH__SCRATCH", '["/a/", "/b/"]')
    found = load(config, None)
    assert found == configuration.load(config, None)
    assert found.push.bandwidth_limit == 10_000_000
    assert (found.push.exclude, found.push.scratch) == (("*.tmp",), ("/a/", "/b/"))
    assert found.deployment.until_seconds() == 1_798_758_000
    assert b"pydantic" not in pickle.dumps(found)


@pytest.mark.parametrize("load", [begun, load_again])
def test_what_is_wrong_is_told_as_where_it_was_found(config: Path, load: Load) -> None:
    with config.open("a") as more:
        more.write('[push]\nexclude = "*.tmp"\nfaster = true\n')
    told = f"{config}: push.exclude: expected a list; push.faster is not a key that onesync knows."
    with pytest.raises(ConfigurationError, match=re.escape(told)):
        load(config, None)
    with pytest.raises(ConfigurationError, match=r"/none.toml cannot be read"):
        load(None, "none")


@pytest.mark.parametrize("load", [begun, load_again])
def test_a_reader_that_dies_is_no_wrong_configuration(
    config: Path, load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dying").write_text("#!/bin/sh\nkill -9 $$\n")
    (tmp_path / "dying").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "dying"))
    monkeypatch.setattr(configuration, "load", lambda *_: os.kill(os.getpid(), 9))
    with pytest.raises(OnesyncError, match="The process that reads the configuration") as died:
        load(config, None)
    assert not isinstance(died.value, ConfigurationError)  # systemd starts it again


def test_where_no_process_can_be_started_the_daemon_goes_on(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/none")
    with pytest.raises(OnesyncError, match="No process can be started"):
        load_again(config, None)
