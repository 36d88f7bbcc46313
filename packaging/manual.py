"""Writes the manual pages: onesync(1) from the commands' help, onesync.toml(5) from the example.

``python packaging/manual.py DIRECTORY`` writes both there, and needs nothing but onesync.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from typer.main import get_command

from onesync import __version__
from onesync.cli import app
from onesync.errors import MEANINGS

EXAMPLE = Path(__file__).parents[1] / "config" / "onesync.toml"
_KEY = re.compile(r"(?:# )?([a-z_]+) = (.+)")
_SECTION = re.compile(r"\[([a-z]+)\]")
_FILES = (
    ("/etc/onesync/NAME.toml", "The configuration of the instance NAME, see onesync.toml(5)."),
    ("/var/lib/onesync/NAME", "What onesync remembers: index, claim, last status, snapshots."),
    ("/run/onesync/NAME/control.sock", "Where the commands reach the daemon."),
    (
        "onesync@NAME.service",
        "The unit: its start ends when the folder is deployed, its stop when all is in OneData.",
    ),
    (
        "/etc/onesync/NAME.token",
        "The access token for OneData, root's and readable by nobody else.",
    ),
    ("oneclient@NAME.service", "Mounts OneData for the instance, where [oneclient] names a host."),
    ("onesync.target", "All instances of the node."),
)


_SIGNALS = (
    ("SIGTERM, SIGINT", "Flush and undeploy; a second one leaves at once with the lock kept."),
    ("SIGHUP", "Read the configuration again, as the command reload does."),
)


@dataclass(frozen=True)
class Key:
    """A key of the configuration: its name, its default or an example, and what it means."""

    name: str
    value: str
    text: str


def command_page() -> str:
    """Return onesync(1)."""
    root = get_command(app)
    lines = [_title("ONESYNC", 1), *_section("NAME")]
    lines += ["onesync \\- deploy a OneData folder on this node, keep it in sync, undeploy it"]
    lines += [*_section("SYNOPSIS"), ".B onesync", ".I COMMAND", "[\\fIOPTION\\fR]..."]
    lines += [*_section("DESCRIPTION"), _text(root.help or "")]
    lines += [*_section("COMMANDS")]
    for words, command in _commands(root, ()):
        lines += [".SS " + _text(" ".join(words)), *_paragraphs(command.help or "")]
        for parameter in command.params:
            lines += _item(_names(parameter), parameter.help or "")
    lines += _section("EXIT STATUS")
    for code, meaning in MEANINGS.items():
        lines += _item(str(int(code)), meaning)
    lines += _section("SIGNALS")
    for name, text in _SIGNALS:
        lines += _item(name, text)
    lines += _section("FILES")
    for name, text in _FILES:
        lines += _item(name, text)
    lines += [*_section("SEE ALSO"), ".BR onesync.toml (5),", ".BR systemctl (1)"]
    return "\n".join(lines) + "\n"


def configuration_page() -> str:
    """Return onesync.toml(5)."""
    head, sections = read_example(EXAMPLE.read_text())
    lines = [_title("ONESYNC.TOML", 5), *_section("NAME")]
    lines += ["onesync.toml \\- configuration of onesync", *_section("DESCRIPTION"), _text(head)]
    for name, keys in sections.items():
        lines += _section(f"[{name}]" if name else "THE FOLDER")
        for key in keys:
            lines += _item(f"{key.name} = {key.value}", key.text)
    lines += [*_section("SEE ALSO"), ".BR onesync (1)"]
    return "\n".join(lines) + "\n"


def read_example(text: str) -> tuple[str, dict[str, list[Key]]]:
    """Return what the example says at its head, and its keys by section."""
    head, _, rest = text.partition("\n\n")
    sections: dict[str, list[Key]] = {"": []}
    section, comment = "", ""
    for line in rest.splitlines():
        if (found := _SECTION.fullmatch(line)) is not None:
            section, comment = found[1], ""
            sections[section] = []
        elif (found := _KEY.fullmatch(line)) is not None:
            sections[section].append(Key(found[1], found[2], comment))
            comment = ""
        elif line.startswith("# "):
            comment = f"{comment} {line[2:]}".strip()
    return head.replace("# ", "").replace("\n", " "), sections


def _commands(command: Any, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    inner = getattr(command, "commands", None)
    if inner is None:
        yield words, command
        return
    for name, found in inner.items():
        yield from _commands(found, (*words, name))


def _names(parameter: Any) -> str:
    value = str(parameter.name).upper()
    if not parameter.opts[0].startswith("-"):
        return value
    names = ", ".join([*parameter.opts, *parameter.secondary_opts])
    return names if parameter.is_flag else f"{names} {value}"


def _title(name: str, section: int) -> str:
    seconds = float(os.environ.get("SOURCE_DATE_EPOCH", time.time()))  # the same page, built again
    date = datetime.fromtimestamp(seconds, UTC).date().isoformat()
    return f'.TH {name} {section} "{date}" "onesync {__version__}" "onesync"'


def _section(name: str) -> list[str]:
    return [f'.SH "{_text(name)}"']


def _item(name: str, text: str) -> list[str]:
    return [".TP", f"\\fB{_text(name)}\\fR", _text(text) or "\\&"]


def _paragraphs(text: str) -> list[str]:
    paragraphs = [_text(" ".join(paragraph.split())) for paragraph in text.split("\n\n")]
    return "\n.PP\n".join(paragraphs).split("\n")


def _text(text: str) -> str:
    """Return text that means itself to a formatter of manual pages."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped


def main() -> None:
    """Write both pages into the directory that is named."""
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    (target / "onesync.1").write_text(command_page())
    (target / "onesync.toml.5").write_text(configuration_page())


if __name__ == "__main__":
    main()
