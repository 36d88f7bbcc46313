"""What people ask of a running daemon: to pause, to follow its configuration, to stay longer."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from onesync.errors import ConfigurationError
from onesync.settings import Settings, load, reloaded
from tests.node import SOON, Node


@pytest.fixture
def one(nodes: list[Node]) -> Node:
    return nodes[0]


def until(condition: Callable[[], object], node: Node) -> None:
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline, node.log()
        time.sleep(0.02)


def kinds(node: Node) -> list[str]:
    return [problem["kind"] for problem in node.status()["problems"]]


def at(seconds: float) -> str:
    """Return the time in so many seconds, as a configuration takes it."""
    return datetime.fromtimestamp(time.time() + seconds, UTC).isoformat()


# -- pause -----------------------------------------------------------------------------------------


def test_a_pause_pushes_nothing_but_what_is_flushed(one: Node) -> None:
    one.deploy()
    asked = one.command("pause", "--for", "2h")
    assert (asked.returncode, asked.stdout.split(":")[0]) == (0, "Paused for 2h"), asked.stderr
    one.wait_for_phase("paused")
    assert kinds(one) == ["paused"]
    assert 7000 < one.status()["paused_until"] - time.time() <= 7200
    (one.work / "file").write_bytes(b"1")
    until(lambda: one.status()["pending_paths"], one)
    assert not (one.store / "file").exists()
    assert one.flush() == 0, one.log()
    assert (one.store / "file").read_bytes() == b"1"
    one.wait_for_phase("paused")
    (one.work / "other").write_bytes(b"2")
    until(lambda: one.status()["pending_paths"], one)
    assert not (one.store / "other").exists()
    resumed = one.command("resume")
    assert (resumed.returncode, resumed.stdout) == (0, "It goes on.\n")
    until(lambda: (one.store / "other").exists(), one)
    until(lambda: kinds(one) == [], one)
    assert one.end() == 0, one.log()


def test_a_pause_ends_by_itself(one: Node) -> None:
    one.deploy()
    assert one.command("pause", "--for", "1s").returncode == 0
    (one.work / "file").write_bytes(b"1")
    until(lambda: (one.store / "file").exists(), one)
    assert one.status()["paused_until"] is None
    assert one.end() == 0, one.log()


def test_a_stop_in_a_pause_flushes(one: Node) -> None:
    one.deploy()
    assert one.command("pause").returncode == 0
    one.wait_for_phase("paused")
    (one.work / "file").write_bytes(b"1")
    assert one.end() == 0, one.log()
    assert (one.store / "file").read_bytes() == b"1"


def test_a_pause_of_no_length_is_refused(one: Node) -> None:
    asked = one.command("pause", "--for", "soon")
    assert asked.returncode == 78
    assert asked.stderr.startswith("onesync: 'soon': expected a duration such as")


# -- the configuration -----------------------------------------------------------------------------


def test_a_changed_configuration_is_followed(one: Node) -> None:
    one.configure(batch__settle_seconds=600.0, batch__max_delay_seconds=600.0)
    one.deploy()
    (one.work / "file").write_bytes(b"1")
    until(lambda: one.status()["pending_paths"], one)
    one.configure(batch__settle_seconds=0.05, push__workers=3)
    told = one.command("reload")
    assert told.returncode == 0, told.stderr
    assert told.stdout == "Changed: batch.max_delay_seconds, batch.settle_seconds.\n"
    assert told.stderr == "Needs a restart: push.workers.\n"
    until(lambda: (one.store / "file").exists(), one)
    assert one.command("reload").stderr == "Needs a restart: push.workers.\n"
    assert one.end() == 0, one.log()


def test_a_signal_reloads_too(one: Node) -> None:
    one.configure(batch__settle_seconds=600.0, batch__max_delay_seconds=600.0)
    one.deploy()
    (one.work / "file").write_bytes(b"1")
    one.configure(batch__settle_seconds=0.05)
    assert one.process is not None
    one.process.send_signal(signal.SIGHUP)
    until(lambda: (one.store / "file").exists(), one)
    assert "the configuration was reloaded" in one.log()
    assert one.end() == 0, one.log()


@pytest.mark.parametrize("way", ["command", "signal"])
def test_a_wrong_configuration_is_not_followed(one: Node, way: str) -> None:
    one.deploy()
    good = one.config.read_text()
    one.config.write_text(good + "\n[nothing]\nkey = 1\n")
    if way == "command":
        told = one.command("reload")
        assert told.returncode == 78, told.stderr
    else:
        assert one.process is not None
        one.process.send_signal(signal.SIGHUP)
        until(lambda: "the configuration was not reloaded" in one.log(), one)
    one.config.write_text(good)
    assert one.flush() == 0, one.log()
    assert one.end() == 0, one.log()


def settings(tmp_path: Path, text: str) -> Settings:
    for name in ("work", "state", "run"):
        (tmp_path / name).mkdir(exist_ok=True)
    config = tmp_path / "onesync.toml"
    places = {"working_dir": "work", "state_dir": "state", "runtime_dir": "run"}
    head = [f'{key} = "{tmp_path / name}"' for key, name in places.items()]
    config.write_text("\n".join([*head, f'onedata_dir = "{tmp_path / "data"}"', text]))
    return load(config, None)


def test_what_needs_a_restart_stays_as_it_was(tmp_path: Path) -> None:
    old = settings(tmp_path, "[push]\nworkers = 8\nround_seconds = 5\n")
    new = settings(
        tmp_path,
        '[push]\nworkers = 9\nround_seconds = 6\n[deployment]\nduration = "2d"\n'
        "[mount]\nio_timeout_seconds = 60\n",
    )
    found = reloaded(old, new)
    assert found.applied == ("deployment.duration", "push.round_seconds")
    assert found.restart == ("mount.io_timeout_seconds", "push.workers")
    assert (found.settings.push.workers, found.settings.push.round_seconds) == (8, 6)
    assert found.settings.deployment.duration == 172_800
    assert found.settings.mount == old.mount
    again = reloaded(found.settings, new)
    assert (again.applied, again.restart) == ((), found.restart)


# -- the end of a deployment -----------------------------------------------------------------------


def test_a_deployment_ends_by_itself(one: Node) -> None:
    one.configure(deployment__duration="3s", deployment__warn="1h")
    one.deploy()
    assert kinds(one) == ["expiring"]
    (one.work / "file").write_bytes(b"1")
    assert one.process is not None
    assert one.process.wait(SOON) == 0, one.log()
    assert (one.store / "file").read_bytes() == b"1"
    assert one.status()["lock"]["released"], "as by a stop"
    assert "the deployment's time is over" in one.log()
    assert one.log().count("the deployment ends soon") == 1
    one.deploy()  # a deployment of its own, with a time of its own
    assert one.end() == 0, one.log()


def test_it_is_told_ahead_and_put_off(one: Node) -> None:
    one.configure(deployment__until=at(1800), deployment__warn="1h")
    one.deploy()
    assert kinds(one) == ["expiring"]
    first = one.status()["expires_at"]
    assert 1700 < first - time.time() <= 1800
    assert "ends in" in " ".join(one.command("status").stdout.split())
    put_off = one.command("extend", "36h")
    assert put_off.returncode == 0, put_off.stderr
    assert one.status()["expires_at"] == pytest.approx(first + 36 * 3600, abs=1)
    assert kinds(one) == []
    # It stands over a restart, and over the configuration.
    one.end(signal.SIGKILL)
    one.deploy()
    assert one.status()["expires_at"] == pytest.approx(first + 36 * 3600, abs=1)
    sooner = one.command("extend", "--until", at(7200))
    assert sooner.returncode == 0, sooner.stderr
    assert one.status()["expires_at"] == pytest.approx(time.time() + 7200, abs=60)
    assert one.end() == 0, one.log()


def test_an_end_that_is_set_while_it_runs_counts(one: Node) -> None:
    one.deploy()
    assert one.status()["expires_at"] is None
    refused = one.command("extend", "1h")
    assert refused.returncode == 1
    assert refused.stderr.startswith("onesync: This deployment has no end that could be put off")
    one.configure(deployment__until=at(2))
    assert "deployment.until" in one.command("reload").stdout
    assert one.process is not None
    assert one.process.wait(SOON) == 0, one.log()


def test_what_is_over_is_not_deployed(one: Node) -> None:
    one.configure(deployment__until=at(-60))
    assert one.refusal() == 78
    assert "nothing was deployed" in one.log()
    assert os.listdir(one.store) == []


def test_what_ended_while_the_node_was_off_is_undeployed_at_the_start(one: Node) -> None:
    one.configure(deployment__until=at(4))
    one.deploy()
    one.end(signal.SIGKILL)
    (one.work / "file").write_bytes(b"1")
    over = one.status()["expires_at"]
    until(lambda: time.time() > over, one)
    one.start()
    assert one.process is not None
    assert one.process.wait(SOON) == 0, one.log()
    assert (one.store / "file").read_bytes() == b"1"
    assert one.status()["lock"]["released"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "Say how much longer"),
        (("1h", "--until", "2030-01-01T00:00Z"), "Say how much longer"),
        (("--until", "tomorrow"), "'tomorrow' is no time with its zone"),
        (("--until", "2030-01-01T00:00"), "is no time with its zone"),
        (("never",), "'never': expected a duration"),
    ],
)
def test_a_wrong_wish_is_refused(one: Node, words: tuple[str, ...], sentence: str) -> None:
    refused = one.command("extend", *words)
    assert refused.returncode == 78
    assert sentence in refused.stderr


@pytest.mark.parametrize(
    "text",
    ['until = 2030-01-01T00:00:00Z\nduration = "1d"', "until = 2030-01-01T00:00:00", 'warn = "x"'],
)
def test_a_wrong_end_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigurationError, match="deployment"):
        settings(tmp_path, f"[deployment]\n{text}")
