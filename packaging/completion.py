"""Writes bash's completion of the program: commands, their options, and the instances of this node.

``python packaging/completion.py`` prints it. It is made ahead, for asking the program itself would
take half a second with every key.
"""

from __future__ import annotations

import sys
from typing import Any

from typer.main import get_command

from onesync.cli import app

_HEAD = """\
# bash completion for onesync
_onesync() {
    local current=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} words=
    case $before in
        --instance)
            # compgen would carry out what else a name may hold.
            words=$(compgen -G '/etc/onesync/*.toml' |
                sed -n 's,^.*/\\([A-Za-z0-9:_.-]*\\)\\.toml$,\\1,p') ;;
        --config)
            mapfile -t COMPREPLY < <(compgen -f -- "$current")
            return ;;
        *) case "${COMP_WORDS[*]:1:COMP_CWORD-1} " in
"""
_TAIL = """\
        esac ;;
    esac
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
}
complete -o filenames -F _onesync onesync
"""


def completion() -> str:
    """Return the whole of it; the longest commands come first, as the first that fits counts."""
    cases = [
        f'            "{words} "*) words="{" ".join(offered)}" ;;\n'
        if words
        else f'            *) words="{" ".join(offered)}" ;;\n'
        for words, offered in sorted(_offers(get_command(app), "").items(), reverse=True)
    ]
    return _HEAD + "".join(cases) + _TAIL


def _offers(command: Any, words: str) -> dict[str, list[str]]:
    """Return what may follow each command."""
    options = [name for p in command.params for name in p.opts if name.startswith("--")]
    inner = getattr(command, "commands", {})
    found = {words: [*inner, *options, "--help"]}
    for name, below in inner.items():
        found |= _offers(below, f"{words} {name}".strip())
    return found


if __name__ == "__main__":
    sys.stdout.write(completion())
