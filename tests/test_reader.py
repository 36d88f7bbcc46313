"""The daemon has its configuration read by others, and is without what that takes."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import onesync
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
    with pytest.raises(OnesyncError, match=r"reads the configuration ended \(signal 9\)") as died:
        load(config, None)
    assert not isinstance(died.value, ConfigurationError)  # systemd starts it again


def test_where_no_process_can_be_started_the_daemon_goes_on(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/none")
    with pytest.raises(OnesyncError, match="No process can be started"):
        load_again(config, None)


def test_what_is_missing_in_the_installation_is_named(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "onesync.configuration")
    monkeypatch.setitem(sys.modules, "pydantic_settings", None)
    with pytest.raises(OnesyncError, match="pydantic_settings"):
        begun(config, None)


def test_what_others_print_is_not_read(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "sitecustomize.py").write_text("print('hello')\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'more'}:{Path(onesync.__file__).parents[1]}")
    assert load_again(config, None) == configuration.load(config, None)


_KEY = "    unexplained_deletions: "
_SECTION = "@dataclass(frozen=True, slots=True, kw_only=True)\nclass Settings:\n"
_LAST = "    undeploy: UndeploySettings = UndeploySettings()\n"
OTHER_VERSIONS = {
    "another number": ("__init__.py", {'__version__ = "': '__version__ = "9'}),
    "a key more": ("settings.py", {_KEY: f"    earlier: int = 0\n{_KEY}"}),
    "a key fewer": ("settings.py", {"    unexplained_percent: ": "    # "}),
    "a section more": (
        "settings.py",
        {
            _SECTION: f"{_SECTION.replace('Settings', 'Later')}    depth: int = 0\n\n\n{_SECTION}",
            _LAST: f"{_LAST}    later: Later = Later()\n",
        },
    ),
}


@pytest.fixture(params=OTHER_VERSIONS)
def replaced(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], None]:
    """What puts another version in the place of the program that processes start from then on."""
    place = tmp_path / "program"
    shutil.copytree(
        Path(onesync.__file__).parent,
        place / "onesync",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    monkeypatch.setenv("PYTHONPATH", str(place))
    name, changes = OTHER_VERSIONS[request.param]

    def replace() -> None:
        text = (place / "onesync" / name).read_text()
        for old, new in changes.items():
            assert text.count(old) == 1
            text = text.replace(old, new)
        (place / "onesync" / name).write_text(text)

    return replace


def test_settings_of_another_version_are_refused(
    nodes: list[Node], replaced: Callable[[], None]
) -> None:
    """A pickle has no names of them: what was read as one key would count as another."""
    node, _ = nodes
    node.is_forked = False
    node.deploy()
    replaced()
    refused = node.command("reload")
    assert refused.returncode == 1
    assert "The program was replaced since it was started" in refused.stderr
    assert node.process is not None
    node.process.send_signal(signal.SIGHUP)
    node.wait_until(lambda: "the configuration was not reloaded" in node.log())
    assert node.end() == 0, node.log()


def test_a_directory_that_is_gone_is_not_needed_any_more(
    nodes: list[Node], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, _ = nodes
    node.is_forked = False
    here, config = tmp_path / "here", node.config
    here.mkdir()
    monkeypatch.chdir(here)
    node.config = Path(os.path.relpath(config))
    node.start()
    monkeypatch.chdir(tmp_path)
    node.wait_for_phase("syncing")
    here.rmdir()
    node.config = config
    refused = node.command("reload")
    assert refused.returncode == 1
    assert "cannot be read" in refused.stderr
    assert node.end() == 0, node.log()
