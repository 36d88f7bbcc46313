"""The manual pages: whole, well-formed, and of the same source as the help."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
from typer.main import get_command

from onesync.cli import app
from onesync.errors import MEANINGS
from onesync.settings import Settings

ROOT = Path(__file__).parents[1]


def _mandoc(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["mandoc", "-T", *words], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Both pages, as a terminal shows them, in one line each."""
    place = tmp_path_factory.mktemp("manual")
    subprocess.run([sys.executable, ROOT / "packaging" / "manual.py", place], check=True)
    assert shutil.which("mandoc"), "install the Debian package mandoc"
    found = {}
    for page in place.iterdir():
        checked = _mandoc("lint", "-W", "warning", page)
        assert checked.returncode == 0, checked.stdout + checked.stderr
        shown = _mandoc("ascii", page)
        found[page.name] = " ".join(re.sub(r".\x08", "", shown.stdout).split())
    return found


def test_every_command_and_option_is_there_with_its_help(pages: dict[str, str]) -> None:
    page = pages["onesync.1"]
    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", {"": command})
        for last, found in inner.items():
            assert f"{name} {last}".strip() in page
            assert " ".join(found.help.split()) in page
            for parameter in found.params:
                assert parameter.opts[0].lstrip("-") in page.lower()
                assert (parameter.help or "") in page


def test_every_key_is_there_with_what_it_means(pages: dict[str, str]) -> None:
    page = pages["onesync.toml.5"]
    for key in fields(Settings):
        section = fields(key.default) if is_dataclass(key.default) else None
        for inner in section or [key]:
            assert f"{inner.name} = " in page
        assert section is None or f"[{key.name}]" in page
    assert "Quiet time before a path is pushed, and the longest that it waits" in page
    assert 'working_dir = "/srv/work/project"' in page


def test_exit_codes_are_those_of_the_readme(pages: dict[str, str]) -> None:
    readme = (ROOT / "README.md").read_text()
    for code, meaning in MEANINGS.items():
        assert f"| {int(code)} | {meaning} |" in readme
        assert f"{int(code)} {meaning}" in pages["onesync.1"]


def test_the_completion_offers_instances_and_carries_out_nothing(tmp_path: Path) -> None:
    made = [sys.executable, str(ROOT / "packaging" / "completion.py"), str(tmp_path)]
    subprocess.run(made, check=True)
    completion = tmp_path / "onesync"
    completion.write_text(completion.read_text().replace("/etc/onesync", str(tmp_path)))
    for name in ("p.toml", "$(touch ran).toml", "p.token"):
        (tmp_path / name).touch()
    words = (
        ". ./onesync; COMP_WORDS=(onesync status --instance ''); COMP_CWORD=3; _onesync;"
        ' echo "${COMPREPLY[@]}"'
    )
    offered = subprocess.run(
        ["bash", "-ec", words], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert offered.stdout == "p\n"
    assert not (tmp_path / "ran").exists()
