"""The configuration: documented, checked at the door, over by the environment."""

from __future__ import annotations

import re
import tomllib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from onesync.configuration import load
from onesync.core.claims import LockTimes
from onesync.errors import ConfigurationError
from onesync.settings import Settings, check_directories

SHIPPED = Path(__file__).parents[1] / "config" / "onesync.toml"
NEEDED = {"user", "working_dir", "onedata_dir", "state_dir", "runtime_dir"}
FOLLOWING = {"settle_seconds", "beat_seconds", "warn_seconds", "suspend_seconds", "dead_seconds"}


def shipped() -> dict[str, Any]:
    """The shipped file with every commented key switched on."""
    text = SHIPPED.read_text()
    return tomllib.loads(re.sub(r"^# (\w+ = )", r"\1", text, flags=re.MULTILINE))


def sections() -> dict[str, dict[str, Any]]:
    """The sections with their defaults."""
    root = Path("/")
    found = asdict(Settings(working_dir=root, onedata_dir=root, state_dir=root, runtime_dir=root))
    return {name: keys for name, keys in found.items() if isinstance(keys, dict)}


def test_every_key_is_documented_and_no_other() -> None:
    found = shipped()
    assert {key for key, value in found.items() if not isinstance(value, dict)} == NEEDED
    assert found.keys() - NEEDED == sections().keys()
    for name, section in sections().items():
        assert found[name].keys() == section.keys(), name


def test_the_documented_values_are_the_defaults() -> None:
    found = shipped()
    times = LockTimes.from_timeout(found["mount"]["io_timeout_seconds"])
    for name, section in sections().items():
        for key, value in section.items():
            documented = found[name][key]
            if value in (None, "") and name != "lock":
                # What has no default of its own is shown by an example, commented out.
                assert re.search(rf"^# {key} = ", SHIPPED.read_text(), re.MULTILINE), key
                continue
            if name == "lock" and key in FOLLOWING:
                value = getattr(times, key.removesuffix("_seconds"))
            value = list(value) if isinstance(value, tuple) else value
            assert documented == value, f"{name}.{key}"


def written(home: Path, text: str = "") -> Path:
    for name in ("work", "data", "state", "run"):
        (home / name).mkdir()
    config = home / "onesync.toml"
    keys = {
        "working_dir": "work",
        "onedata_dir": "data",
        "state_dir": "state",
        "runtime_dir": "run",
    }
    lines = [f'{key} = "{home / name}"' for key, name in keys.items()]
    config.write_text("\n".join(lines) + "\n" + text)
    return config


def test_the_environment_stands_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = written(tmp_path, "[push]\nworkers = 3\n[batch]\nsettle_seconds = 7\n")
    monkeypatch.setenv("ONESYNC_PUSH__WORKERS", "5")
    settings = load(config, None)
    assert settings.push.workers == 5
    assert settings.batch.settle_seconds == 7


def test_systemd_names_the_state_and_runtime_directories(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "onesync.toml"
    config.write_text('working_dir = "/work"\nonedata_dir = "/data"\n')
    with pytest.raises(ConfigurationError, match="STATE_DIRECTORY"):
        load(config, None)
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/onesync/p")
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/onesync/p:/run/other")
    settings = load(config, None)
    assert settings.state_dir == Path("/var/lib/onesync/p")
    assert settings.runtime_dir == Path("/run/onesync/p")


def test_our_own_directories_must_lie_outside_the_working_copy(tmp_path: Path) -> None:
    config = written(tmp_path)
    (tmp_path / "work" / "state").mkdir()
    config.write_text(config.read_text().replace(f"{tmp_path}/state", f"{tmp_path}/work/state"))
    with pytest.raises(ConfigurationError, match=r"state_dir .* lies inside the working directory"):
        check_directories(load(config, None))


@pytest.mark.parametrize(("ours", "place"), [("state", "work"), ("run", "data")])
def test_nothing_of_the_users_lies_in_what_goes_with_us(
    tmp_path: Path, ours: str, place: str
) -> None:
    config = written(tmp_path)
    (tmp_path / ours / "inner").mkdir()
    text = config.read_text().replace(f"{tmp_path}/{place}", f"{tmp_path}/{ours}/inner")
    config.write_text(text)
    with pytest.raises(ConfigurationError, match=f"{ours}/inner lies inside .*onesync's own"):
        check_directories(load(config, None))


def test_a_path_that_begins_with_two_slashes_is_that_with_one(tmp_path: Path) -> None:
    config = written(tmp_path)
    text = config.read_text().replace(f'"{tmp_path}/data"', f'"/{tmp_path}/data"')
    config.write_text(text.replace(f"{tmp_path}/work", f"{tmp_path}/data/work"))
    (tmp_path / "data" / "work").mkdir()
    with pytest.raises(ConfigurationError, match="the same or one lies inside the other"):
        check_directories(load(config, None))


def test_a_configuration_must_be_named() -> None:
    with pytest.raises(ConfigurationError, match="--config FILE or --instance NAME"):
        load(None, None)
    with pytest.raises(ConfigurationError, match=r"/etc/onesync/none.toml cannot be read"):
        load(None, "none")


def test_an_instance_name_is_no_path() -> None:
    with pytest.raises(ConfigurationError, match="instance"):
        load(None, "../secret")
