"""Writes the program's completion for bash, zsh and fish: commands, options, this node's instances.

``python packaging/completion.py DIRECTORY`` writes ``onesync``, ``_onesync`` and ``onesync.fish``
there, as these shells name them. They are made ahead, for asking the program itself would take half
a second with every key.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from typer.main import get_command

from onesync.cli import app

# In each, the words before the one that is completed tell what may follow: the longest commands
# come first, as the first that fits counts.
_BASH = """\
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
@CASES@
        esac ;;
    esac
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
}
complete -o filenames -F _onesync onesync
"""
_ZSH = """\
#compdef onesync
case $words[CURRENT-1] in
    --instance) compadd -- /etc/onesync/*.toml(N:t:r) ;;
    --config) _files ;;
    *) case "${(j: :)words[2,CURRENT-1]} " in
@CASES@
    esac ;;
esac
"""
_FISH = """\
# fish completion for onesync
function __onesync_offers
    set -l before (commandline -opc)
    if test $before[-1] = --instance
        set -l found /etc/onesync/*.toml
        string replace -r '.*/(.*)\\.toml$' '$1' $found
        return
    end
    switch (string join ' ' $before[2..])' '
@CASES@
    end
end
complete -c onesync -f -n 'test (commandline -opc)[-1] != --config' -a '(__onesync_offers)'
"""


def completions() -> dict[str, str]:
    """Return the files by their names."""
    offers = sorted(_offers(get_command(app), "").items(), reverse=True)
    forms = {
        "onesync": (_BASH, '            {}*) words="{}" ;;'),
        "_onesync": (_ZSH, "        {}*) compadd -- {} ;;"),
        "onesync.fish": (_FISH, "        case {}'*'\n            string split ' ' -- '{}'"),
    }
    return {
        name: frame.replace("@CASES@", "\n".join(_case(form, *offer) for offer in offers))
        for name, (frame, form) in forms.items()
    }


def _case(form: str, words: str, offered: list[str]) -> str:
    return form.format(f'"{words} "' if words else "", " ".join(offered))


def _offers(command: Any, words: str) -> dict[str, list[str]]:
    """Return what may follow each command."""
    options = [name for p in command.params for name in p.opts if name.startswith("--")]
    inner = getattr(command, "commands", {})
    found = {words: [*inner, *options, "--help"]}
    for name, below in inner.items():
        found |= _offers(below, f"{words} {name}".strip())
    return found


if __name__ == "__main__":
    for file, text in completions().items():
        (Path(sys.argv[1]) / file).write_text(text)
