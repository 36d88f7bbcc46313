"""A line that is read in the short way is what it is as JSON, and refused where that is refused."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from onesync.core.chain import (
    Change,
    Damaged,
    Header,
    Position,
    Sealed,
    Set,
    _fold,
    _header_fields,
    _parse,
    _read_change,
    apply,
    unseal,
)
from onesync.core.model import (
    LONGEST_PATH,
    RESERVED_PREFIX,
    STATUS_FOLDER,
    Entry,
    Kind,
    Problem,
    RelPath,
)
from onesync.core.tree import Tree

_LONGEST = b"/".join([b"n" * 255] * 16)
_PLAIN_PATHS = [
    *(b"a", b"a/b", b".a", b"..a", b"...", b".a/.b", b"a b/~[]{}#!^", b"a.b", b".o", b".deploy"),
    *(b"n" * 255, _LONGEST, b"/".join([b"d"] * 16)),
]
_ODD_PATHS = [
    *(b"", b".", b"..", b"/", b"/a", b"a/", b"a//b", b"a/.", b"a/..", b"./a", b"../a", b"a/../b"),
    *(STATUS_FOLDER, STATUS_FOLDER + b"/a", STATUS_FOLDER + b"2", b"a/" + STATUS_FOLDER),
    *(RESERVED_PREFIX, RESERVED_PREFIX + b"a", b"a/" + RESERVED_PREFIX, b"a" + RESERVED_PREFIX),
    *(RESERVED_PREFIX + b"/a", b"a/" + RESERVED_PREFIX + b"x/b", b".onesync"),
    *(b"n" * 256, b"n" * 256 + b"/a", b"a/" + b"n" * 256, _LONGEST + b"n", _LONGEST + b"/a"),
    *(b"/".join([b"d"] * 17), b"/".join([b"n" * 254] * 17), b"d/" * (LONGEST_PATH // 2) + b"a"),
    *(b"\\u00e9", b"\\udcff", b"\\ud800", b"a\\u002fb", b"\\u002e", b"\\u0000", b'\\"', b"\\\\"),
    *(b"a\\/..", b"\\n", b"\\x", b"\xc3\xa9", b"\xff", b"\x7f", b"\0", b"\x1f", b"\t", b"\r"),
    *(b"\x85", b"\xa0", b"\xc2\x85", b'a","path":"b', b'"', b'a"'),
]
_NUMBERS = [
    *(b"0", b"1", b"-1", b"-0", b"+1", b"00", b"01", b"007", b"1.0", b"1e2", b"", b" 1", b"1 "),
    *(b"8", b"77", b"99", b"100", b"420", b"499", b"500", b"509", b"511", b"512", b"520", b"999"),
    *(b"1000", b'"1"', b"true", b"null", b"NaN", b"0x1", b"1_0", b"\xc2\xb2"),
    *(b"%d" % (number + more) for number in (10**18, 9 * 10**18, 2**63) for more in (-1, 0, 1)),
    *(b"-%d" % (number + more) for number in (10**18, 9 * 10**18, 2**63) for more in (-1, 0, 1)),
    *(b"9" * 19, b"1" + b"0" * 19),
]
_DIGESTS = [
    b"ab" * 32,
    b"",
    b"a",
    b"AB" * 32,
    b"a b",
    b"\\u0061",
    b"\\u00e9",
    b"\xc3\xa9",
    b"g",
    b'"',
]
_ENDS = [b"}", b',"group":7}', b',"group":-1}', b',"xattrs":{"user.a":"b"}}', b',"path":"b"}']
_ENDS += [b',"gone":"a"}', b"", b"} ", b"}\r", b"}}", b"},", b"]"]
_OTHERS = [
    *(b'{"gone":"a"}', b'{"renamed":"a","to":"b"}', b'{"problem":"odd","path":"a","text":"t"}'),
    *(b'{"path":"a","kind":"dir","mtime_ns":1,"mode":493}', b'{"path":"l","kind":"link"}'),
    *(b'{"path":"l","kind":"link","target":"t"}', b'{"gone":"../a"}', b'{"renamed":"a","to":""}'),
    *(b"", b" ", b"{}", b"[]", b"null", b"\xef\xbb\xbf{}", b"{", b'{"gone":"a"} {"gone":"b"}'),
]


def line(
    path: bytes = b"a",
    mtime_ns: bytes = b"1795618894620523286",
    mode: bytes = b"420",
    size: bytes = b"7",
    digest: bytes = b"ab" * 32,
    end: bytes = b"}",
) -> bytes:
    """Return the line of a file, in whatever state."""
    known = b'"mtime_ns":%b,"mode":%b,"size":%b,"digest":"%b"' % (mtime_ns, mode, size, digest)
    return b'{"path":"%b","kind":"file",%b%b' % (path, known, end)


def sealed(lines: Iterable[bytes]) -> Sealed:
    """Return a whole file of ``lines``."""
    header = Header("f", Position(1, 1), None, "w", "t", "base")
    body = b"".join(each + b"\n" for each in [json.dumps(_header_fields(header)).encode(), *lines])
    trailer = {"end": body.count(b"\n") - 1, "digest": blake3(body).hexdigest()}
    return unseal(gzip.compress(body + json.dumps(trailer).encode() + b"\n"))


def told(changes: Callable[[], Iterable[Change]]) -> list[Change] | str:
    """Return the changes, or why there are none."""
    try:
        return list(changes())
    except Damaged as error:
        return str(error)


def as_json(lines: Iterable[bytes]) -> Iterable[Change]:
    """Yield what the lines are in the long way."""
    return (_read_change(_parse(each)) for each in lines)


ONE_ODD = [
    *(line(path) for path in _PLAIN_PATHS + _ODD_PATHS),
    *(line(mtime_ns=number) for number in _NUMBERS),
    *(line(mode=number) for number in [*_NUMBERS, *(b"%d" % mode for mode in range(600))]),
    *(line(size=number) for number in _NUMBERS),
    *(line(digest=digest) for digest in _DIGESTS),
    *(line(end=end) for end in _ENDS),
    *(line()[at:] for at in range(9)),
    *_OTHERS,
]
LINE = st.one_of(
    st.builds(
        line,
        st.sampled_from(_PLAIN_PATHS) | st.sampled_from(_ODD_PATHS),
        st.sampled_from([b"1", *_NUMBERS]),
        st.just(b"420") | st.sampled_from(_NUMBERS),
        st.just(b"7") | st.sampled_from(_NUMBERS),
        st.just(b"ab" * 32) | st.sampled_from(_DIGESTS),
        st.just(b"}") | st.sampled_from(_ENDS),
    ),
    st.sampled_from(ONE_ODD),
    st.binary(max_size=9).filter(lambda raw: b"\n" not in raw),
)


def test_one_odd_thing_in_a_line_is_what_it_is_as_json() -> None:
    for each in ONE_ODD:
        assert told(sealed([each]).changes) == told(lambda: as_json([each])), each  # noqa: B023


@given(st.lists(LINE, max_size=3))
def test_lines_are_what_they_are_as_json(lines: list[bytes]) -> None:
    assert told(sealed(lines).changes) == told(lambda: as_json(lines))


@given(st.integers(0, len(line()) - 1), st.integers(0, 255).filter(lambda code: code != 10))
def test_a_byte_of_a_line_that_became_another_one_too(at: int, code: int) -> None:
    changed = bytearray(line(b"a/.b"))
    changed[at] = code
    assert told(sealed([bytes(changed)]).changes) == told(lambda: as_json([bytes(changed)]))


@given(st.lists(st.sampled_from([line(b"a"), line(b"a/b", size=b"8"), *_OTHERS[:4]]), max_size=9))
def test_what_is_folded_is_what_is_applied(lines: list[bytes]) -> None:
    expected, tree = Tree(), Tree()
    problems: dict[RelPath, Problem] = {b"a": Problem(b"a", "odd", ""), b"": Problem(b"", "", "")}
    noted = dict(problems)
    apply(expected, as_json(lines), problems)
    _fold(tree, sealed(lines), noted)
    assert (dict(tree), noted) == (dict(expected), problems)


@pytest.mark.parametrize("path", _PLAIN_PATHS, ids=lambda path: str(path[:20]))
def test_an_ordinary_file_is_never_read_as_json(
    path: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = sealed([line(path)])
    monkeypatch.setattr("onesync.core.chain._parse", None)
    entry = Entry(Kind.FILE, 7, 1795618894620523286, 0o644, "ab" * 32)
    assert list(checkpoint.changes()) == [Set(path, entry)]
