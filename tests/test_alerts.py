"""The alerts' rules, their tests and their runbook, by promtool and against each other."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from onesync.cli import app
from tests.test_prometheus import needs_prometheus

ROOT = Path(__file__).parents[1]
RULES = ROOT / "config" / "prometheus" / "onesync.rules.yml"
RUNBOOK = ROOT / "config" / "prometheus" / "RUNBOOK.md"
CASES = ROOT / "tests" / "prometheus" / "alerts_test.yml"
DASHBOARDS = ROOT / "config" / "grafana"


def _alerts() -> dict[str, str]:
    """Return the text of each alert's rule."""
    _, *parts = re.split(r"^ +- alert: (\w+)$", RULES.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def _sections() -> dict[str, str]:
    """Return the text of each section of the runbook."""
    _, *parts = re.split(r"^## (.+)$", RUNBOOK.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def _promtool(*words: str) -> None:
    needs_prometheus()
    done = subprocess.run(["promtool", *words], capture_output=True, check=False, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_finds_nothing_wrong_with_the_rules() -> None:
    _promtool("check", "rules", "--lint-fatal", str(RULES))


def test_every_alert_comes_when_it_should_and_says_what_it_should() -> None:
    _promtool("test", "rules", str(CASES))


def test_every_alert_has_a_case_where_it_comes_and_one_where_it_does_not() -> None:
    cases = re.findall(
        r"alertname: (\w+)\n +eval_time: \w+\n +exp_alerts:( \[\])?$",
        CASES.read_text(),
        re.MULTILINE,
    )
    wanted = {(name, empty) for name in _alerts() for empty in ("", " []")}
    assert set(cases) == wanted


@pytest.mark.parametrize("name", _alerts())
def test_an_alert_leads_to_a_section_that_says_what_to_look_at_and_what_to_type(name: str) -> None:
    rule = _alerts()[name]
    assert re.search(r"^ +severity: (warning|critical)$", rule, re.MULTILINE)
    assert re.search(r"^ +summary: \S", rule, re.MULTILINE)
    assert re.search(r"^ +description: ", rule, re.MULTILINE)
    assert f"runbook: config/prometheus/RUNBOOK.md#{name.lower()}\n" in rule
    section = _sections()[name]
    assert re.search(r"^Look at ", section, re.MULTILINE)
    assert re.search(r"^ {4,}\S", section, re.MULTILINE), "nothing to type"


def test_the_runbook_has_no_section_of_an_alert_that_is_gone() -> None:
    assert set(_sections()) - {"Setting up"} == set(_alerts())


def test_links_within_the_runbook_lead_somewhere() -> None:
    anchors = {title.lower().replace(" ", "-") for title in _sections()}
    links = re.findall(r"\]\(#(.+?)\)", RUNBOOK.read_text())
    assert links
    assert set(links) <= anchors


def test_what_the_runbook_tells_to_type_exists() -> None:
    command: Any = get_command(app)
    typed = re.findall(r"onesync (?!status`)([a-z]+)((?: --[a-z-]+| [A-Z]+)*)", RUNBOOK.read_text())
    typed = [(word, options) for word, options in typed if "--instance NAME" in options]
    assert len(typed) > 10
    for word, options in typed:
        known = {o for parameter in command.commands[word].params for o in parameter.opts}
        assert set(re.findall(r"--[a-z-]+", options)) <= known, word


def test_dashboards_name_alerts_that_exist() -> None:
    named = {
        name
        for dashboard in DASHBOARDS.iterdir()
        for name in re.findall(r"\bOnesync[A-Z]\w+", dashboard.read_text())
    }
    assert named <= set(_alerts())
    assert len(named) > 10
