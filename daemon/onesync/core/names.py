"""Names that OneData refuses, hides or takes for others, and what they are called there instead.

An escaped name tells its own one: ``onesync=1=`` and the name, percent-encoded. Where that would be
too long, it is ``onesync=1-``, the name's digest, ``=`` and what is readable of its beginning, and
a note in the status folder holds the name. Escaped names are at most 128 bytes of plain characters,
so whoever takes any name takes them. Two names never have the same escaped one.
"""

from __future__ import annotations

import json
import re
from urllib.parse import quote_from_bytes, unquote_to_bytes

from blake3 import blake3

from onesync.core.model import STATUS_FOLDER, RelPath, is_reserved, join

LONGEST_NAME = 255
"""Bytes; Linux knows no longer ones."""

NOTES = STATUS_FOLDER + b"/names"
FORMAT = 1
_LONGEST_ESCAPED = 128
_ESCAPED = b"onesync=1="
_DIGESTED = b"onesync=1-"
_PLAIN = re.compile(
    rb"(?:[A-Za-z0-9_.~+=,()\[\]{}# -]{1,128}/)*[A-Za-z0-9_.~+=,()\[\]{}# -]{0,128}"
)
_SPECIAL = re.compile(rb"(?:^|/)(?:onesync=1[=-]|\.__onedata__)|####TO_DELETE")
_HIDDEN = re.compile(rb"\.__onedata__|.*####TO_DELETE", re.DOTALL)
_BY_ID = b".__onedata__file_id__"
_UNREADABLE = re.compile(rb"[^A-Za-z0-9_.-]+")


def is_plain(path: RelPath) -> bool:
    """Return whether every part of ``path`` is a name that nobody has to ask about."""
    return _PLAIN.fullmatch(path) is not None and _SPECIAL.search(path) is None


def must_be_escaped(name: bytes) -> bool:
    """Return whether OneData cannot be trusted with ``name``, whatever it answers.

    What is not UTF-8 it cannot keep; what is hidden no listing shows; what follows an ``@`` it may
    take for the id of a provider, and open another file; and some look like escaped ones.
    """
    return is_ambiguous(name) or is_hidden(name) or name.startswith((_ESCAPED, _DIGESTED))


def is_hidden(name: bytes) -> bool:
    """Return whether OneData leaves ``name`` out of its listings."""
    return _HIDDEN.match(name) is not None


def is_ambiguous(name: bytes) -> bool:
    """Return whether a look at ``name`` may find another file, or answer with any error."""
    return b"@" in name or name.startswith(_BY_ID) or not _is_utf8(name)


def escape(name: bytes) -> bytes:
    """Return the escaped name of ``name``."""
    escaped = _ESCAPED + _encoded(name)
    if len(escaped) <= _LONGEST_ESCAPED:
        return escaped
    digested = _DIGESTED + blake3(name).hexdigest(16).encode() + b"="
    return (digested + _UNREADABLE.sub(b"_", name))[:_LONGEST_ESCAPED]


def unescape(stored: bytes) -> bytes | None:
    """Return the name that ``stored`` is the escaped one of; None where it does not tell."""
    if not stored.startswith(_ESCAPED):
        return None
    name = unquote_to_bytes(stored[len(_ESCAPED) :])
    return name if _is_name(name) and escape(name) == stored else None


def note_of(stored: bytes) -> RelPath | None:
    """Return where the note is that tells what ``stored`` stands for; None where none is needed."""
    return join(NOTES, stored) if stored.startswith(_DIGESTED) else None


def write_note(name: bytes) -> bytes:
    """Return the content of the note of ``name``."""
    text = name.decode("utf-8", "surrogateescape")
    return json.dumps({"onesync": "name", "format": FORMAT, "name": text}).encode()


def read_note(content: bytes, stored: bytes) -> bytes | None:
    """Return the name that ``stored`` stands for; None where its note is torn, foreign or newer."""
    try:
        found = json.loads(content)
        if (found["onesync"], found["format"]) != ("name", FORMAT):
            return None
        name = str(found["name"]).encode("utf-8", "surrogateescape")
    except (ValueError, KeyError, TypeError):
        return None
    return name if _is_name(name) and escape(name) == stored else None


def _encoded(name: bytes) -> bytes:
    return quote_from_bytes(name, safe="").replace("~", "%7E").encode()


def _is_name(name: bytes) -> bool:
    """Whether a name that came from outside may be given to a file here."""
    if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
        return False
    return len(name) <= LONGEST_NAME and not is_reserved(name)


def _is_utf8(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True
