"""Escaped names: what they stand for is never lost, and never another name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onesync.core.model import RESERVED_PREFIX, is_reserved
from onesync.core.names import (
    LONGEST_NAME,
    NOTES,
    escape,
    is_hidden,
    is_plain,
    must_be_escaped,
    note_of,
    read_note,
    unescape,
    write_note,
)
from tests.workload.names import ODD_NAMES

PIECES = [
    *(b"onesync=1=", b"onesync=1-", b"onesync=1-" + b"0" * 32 + b"=", b"%", b"%25", b"%40", b"@"),
    *(b"\xff", b"\xc3", "ü".encode(), b".__onedata__", b"####TO_DELETE", b"a", b"A", b"\n", b"~"),
    *(b"n" * 100, b"\xff" * 60, RESERVED_PREFIX[1:], b".", b" "),
]


def is_a_name(name: bytes) -> bool:
    good = bool(name) and b"/" not in name and b"\0" not in name and name not in (b".", b"..")
    return good and len(name) <= LONGEST_NAME and not is_reserved(name)


ANY = st.binary(min_size=1, max_size=255)
MADE = st.lists(st.sampled_from(PIECES), min_size=1, max_size=6).map(b"".join)
NAMES = st.one_of(ANY, MADE).filter(is_a_name)


def places(name: bytes) -> set[bytes]:
    """All that ``name`` may ever be called in OneData."""
    return {escape(name)} if must_be_escaped(name) else {name, escape(name)}


@given(NAMES)
def test_an_escaped_name_tells_its_own(name: bytes) -> None:
    stored = escape(name)
    told = unescape(stored)
    if note_of(stored) is None:
        assert told == name
    else:
        assert told is None
        assert read_note(write_note(name), stored) == name


@given(NAMES)
def test_an_escaped_name_is_refused_by_nobody(name: bytes) -> None:
    stored = escape(name)
    assert len(stored) <= 128
    assert stored.isascii()
    assert stored.decode().isprintable()
    assert b"@" not in stored
    assert b"/" not in stored
    assert not is_hidden(stored)
    assert not is_reserved(stored)
    assert escape(stored) != stored
    assert must_be_escaped(stored), "a name of the user's that looks like it is not taken for it"


@given(NAMES, NAMES)
def test_two_names_never_meet(one: bytes, other: bytes) -> None:
    assert one == other or not places(one) & places(other)


@given(st.lists(NAMES, min_size=1, max_size=4))
def test_a_plain_path_has_only_plain_names(names: list[bytes]) -> None:
    assert is_plain(b"/".join(names)) == all(map(is_plain, names))
    assert not any(is_plain(name) and must_be_escaped(name) for name in names)


@pytest.mark.parametrize(
    "stored",
    [
        *(b"onesync=1=", b"onesync=1=.", b"onesync=1=..", b"onesync=1=%2E%2E", b"onesync=1=a%2Fb"),
        *(b"onesync=1=a%00", b"onesync=1=%FF%", b"onesync=1=%ff", b"onesync=1=a@b", b"plain"),
        b"onesync=1=.onesync%7EE000001-000001%7E1",
        b"onesync=1=.deployment_status_do_not_delete",
        b"onesync=1=" + b"n" * 250,
    ],
)
def test_what_no_name_is_escaped_to_stands_for_nothing(stored: bytes) -> None:
    assert unescape(stored) is None


@pytest.mark.parametrize("name", [b"..", b"a/b", b"/etc", b"", b"n" * 256, b".onesync~x"])
def test_a_note_cannot_tell_what_is_no_name(name: bytes) -> None:
    assert read_note(write_note(name), escape(name)) is None


@pytest.mark.parametrize("torn", [b"", b"{", b"[]", b"null", b'{"onesync": "name"}', b"\xff"])
def test_a_torn_note_tells_nothing(torn: bytes) -> None:
    assert read_note(torn, escape(b"\xff" * 100)) is None


def test_a_note_of_a_newer_format_tells_nothing() -> None:
    name = b"\xff" * 100
    newer = write_note(name).replace(b'"format": 1', b'"format": 2')
    assert read_note(newer, escape(name)) is None


def test_names_of_format_1_are_read_for_ever() -> None:
    assert unescape(b"onesync=1=caf%E9%40x.mrc") == b"caf\xe9@x.mrc"
    assert unescape(b"onesync=1=onesync%3D1%3Da") == b"onesync=1=a"
    long = b"\xe9" * 3 + b"m" * 200
    stored = (b"onesync=1-da687b7b026706ef6b5e80028408a192=_" + b"m" * 200)[:128]
    assert escape(long) == stored
    assert note_of(stored) == NOTES + b"/" + stored
    note = b'{"onesync": "name", "format": 1, "name": "\\udce9\\udce9\\udce9' + b"m" * 200 + b'"}'
    assert read_note(note, stored) == long


def test_scipion_has_plain_names() -> None:
    for path in (
        b"Runs/000123_XmippProtPreprocess/extra/mic (1).mrc",
        b".onesync~E000001-000002~3",
    ):
        assert is_plain(path)
    plain = {name for name in ODD_NAMES if is_plain(name)}
    assert plain >= {b"A.mrc", b"a.mrc", b"-rf", b"mic (1).mrc", b".nfs0001", b"a=b"}
    assert not plain & {b"@x", b"\xff", b"n" * 255, b"new\nline", b"100%"}
    assert {name for name in ODD_NAMES if must_be_escaped(name)} == {
        *(b"@x", b"\xe9", b"\xff", b"\xc3", b"\xed\xa0\x80"),
    }
