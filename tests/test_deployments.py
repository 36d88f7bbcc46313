"""Which instances of a node have a deployment that nobody may take the program away from."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from onesync import settings
from onesync.cli import deployments
from onesync.inspect import has_deployment
from tests.node import Node


def is_deployed(node: Node) -> bool:
    return has_deployment(node.home / "state")


def test_from_the_claim_to_its_release(nodes: list[Node]) -> None:
    one, two = nodes
    assert not is_deployed(one)
    one.deploy()
    assert is_deployed(one)
    two.start()
    assert two.wait() == 11
    assert not is_deployed(two)
    one.end(signal.SIGKILL)
    assert is_deployed(one)
    one.deploy()
    assert one.end() == 0, one.log()
    assert not is_deployed(one)


def test_a_cleaned_copy_is_no_deployment(nodes: list[Node]) -> None:
    one, _ = nodes
    one.configure(undeploy__clean_working_dir=True)
    one.deploy()
    assert one.end() == 0, one.log()
    assert not is_deployed(one)


def test_a_claim_counts_before_anything_is_staged_in(nodes: list[Node], store: Path) -> None:
    one, _ = nodes
    one.start_dying("onesync.deploy", "Deploy", "take_over", 1)
    assert one.wait() == -9
    store.rename(store.with_name("away"))
    one.start()
    assert one.wait() == 14
    assert is_deployed(one), "the lock is still there"
    store.with_name("away").rename(store)
    one.deploy()
    assert one.end() == 0, one.log()
    assert not is_deployed(one)


def test_a_claim_that_is_withdrawn_is_no_deployment(nodes: list[Node], store: Path) -> None:
    for number in range(4000):
        (store / f"{number}").write_bytes(b"1")
    one, _ = nodes
    one.start()
    one.wait_for_phase("staging_in")
    assert one.end() == 0, one.log()
    assert "stopped before the folder was deployed" in one.log()
    assert not is_deployed(one)


def test_a_cleaning_that_died_counts_until_its_lock_is_released(nodes: list[Node]) -> None:
    one, _ = nodes
    one.configure(undeploy__clean_working_dir=True)
    one.start_dying("onesync.working_copy", "", "clean", 1)
    one.wait_for_phase("syncing")
    one.end()
    assert is_deployed(one)
    one.start()
    assert one.wait() == 0, one.log()
    assert not is_deployed(one)


def test_a_release_that_fails_leaves_a_deployment(nodes: list[Node]) -> None:
    one, _ = nodes
    one.start_dying("onesync.lock", "Lock", "release", 1)
    one.wait_for_phase("syncing")
    one.end()
    assert is_deployed(one)
    one.deploy()
    assert one.end() == 0, one.log()
    assert not is_deployed(one)


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Where this node has configurations, and states."""
    etc, var = tmp_path / "etc", tmp_path / "var"
    etc.mkdir()
    var.mkdir()
    monkeypatch.setattr(settings, "CONFIGURATIONS", etc)
    monkeypatch.setattr(settings, "_UNIT", {"state_dir": ("STATE_DIRECTORY", var)})
    return etc, var


def test_every_instance_is_looked_at(places: tuple[Path, Path], tmp_path: Path) -> None:
    etc, var = places
    (etc / "elsewhere.toml").write_text(f'state_dir = "{tmp_path}/other"')
    (etc / "torn.toml").write_text("state_dir = ")
    for name in ("torn", "without", "elsewhere"):
        (var / name).mkdir()
    assert settings.state_dirs() == {
        "elsewhere": [var / "elsewhere", tmp_path / "other"],
        "torn": [var / "torn"],
        "without": [var / "without"],
    }


def test_a_state_kept_elsewhere_is_found_without_its_configuration(
    places: tuple[Path, Path],
    nodes: list[Node],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    etc, var = places
    made = var / "one"  # as systemd makes it for the unit, whatever the file names
    made.mkdir()
    monkeypatch.setenv("STATE_DIRECTORY", str(made))
    one, _ = nodes
    for _ in range(2):
        one.deploy()
        one.end(signal.SIGKILL)
    assert settings.state_dirs() == {"one": [made, one.home / "state"]}
    for broken in ("state_dir = ", f'state_dir = "{one.home}/yet_another"'):
        (etc / "one.toml").write_text(broken)
        deployments()
        assert capsys.readouterr().out == "one\n"
    one.deploy()
    assert one.end() == 0, one.log()
    deployments()
    assert capsys.readouterr().out == ""


def test_a_claim_whose_index_is_lost_counts(nodes: list[Node], store: Path) -> None:
    one, _ = nodes
    one.deploy()
    one.end(signal.SIGKILL)
    for left in (one.home / "state").glob("index.sqlite*"):
        left.unlink()
    assert is_deployed(one)
    store.rename(store.with_name("away"))  # so the new index knows nothing yet
    one.start()
    assert one.wait() == 14
    assert (one.home / "state" / "index.sqlite").exists()
    assert is_deployed(one)
    store.with_name("away").rename(store)
    one.deploy()
    assert one.end() == 0, one.log()
    assert not is_deployed(one)


def test_an_index_that_cannot_be_read_counts(
    places: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    _, var = places
    for name in ("damaged", "empty"):
        (var / name).mkdir()
    (var / "damaged" / "index.sqlite").write_bytes(b"damaged" * 1000)
    deployments()
    told = capsys.readouterr()
    assert told.out == "damaged\n"
    assert "damaged/index.sqlite" in told.err
