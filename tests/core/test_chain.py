from __future__ import annotations

import errno
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onesync.core.chain import (
    Change,
    Damaged,
    Gone,
    Header,
    NewerFormat,
    Noted,
    Position,
    Renamed,
    Set,
    _read_change,
    apply,
    asked_for,
    base_name,
    checkpoint_name,
    decode,
    encode,
    file_digest,
    find_head,
    parse_name,
)
from onesync.core.model import Entry, Kind, Problem
from onesync.core.tree import Tree

NAME = st.binary(min_size=1, max_size=8).filter(
    lambda n: b"/" not in n and b"\0" not in n and n not in (b".", b"..")
)
PATH = st.lists(NAME, min_size=1, max_size=3).map(b"/".join)
FILE = st.builds(
    Entry,
    st.just(Kind.FILE),
    st.integers(0, 2**40),
    st.integers(-(2**40), 2**62),
    st.integers(0, 0o777),
    st.just("ab" * 32),
    group=st.integers(0, 2**63),
    xattrs=st.dictionaries(NAME.map(b"user.".__add__), st.binary(max_size=9), max_size=2).map(
        lambda found: tuple(sorted(found.items()))
    ),
)
CHANGE: st.SearchStrategy[Change] = st.one_of(
    st.builds(Set, PATH, FILE),
    st.builds(Gone, PATH),
    st.builds(Renamed, PATH, PATH),
    st.builds(Noted, st.builds(Problem, PATH, st.just("odd"), st.text(max_size=9))),
)


def header(
    epoch: int, sequence: int, previous: tuple[str, str] | None = None, why: str = "incremental"
) -> Header:
    return Header("folder", Position(epoch, sequence), previous, "w", "2026-01-01T00:00:00", why)


def entry(size: int) -> Entry:
    return Entry(Kind.FILE, size, 1, 0o644, "cd" * 32)


class Manifest:
    """Files by name, with links that fit."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.head: tuple[str, str] | None = None

    def write(self, epoch: int, sequence: int, *changes: Change, why: str = "incremental") -> str:
        place = Position(epoch, sequence)
        name = base_name(place) if why == "base" else checkpoint_name(place)
        data = encode(header(epoch, sequence, self.head, why), changes)
        self.files[name] = data
        self.head = (name, file_digest(data))
        return name

    def read(self, name: str) -> bytes:
        if name not in self.files:
            raise FileNotFoundError(name)
        return self.files[name]


@given(st.lists(CHANGE, max_size=6))
def test_what_was_encoded_is_decoded(changes: list[Change]) -> None:
    checkpoint = decode(encode(header(7, 3), changes))
    assert list(checkpoint.changes) == changes
    assert checkpoint.header == header(7, 3)


@given(st.lists(CHANGE, max_size=3), st.data())
def test_any_cut_is_damaged(changes: list[Change], data: st.DataObject) -> None:
    whole = encode(header(1, 1), changes)
    with pytest.raises(Damaged):
        decode(whole[: data.draw(st.integers(0, len(whole) - 1))])


@given(st.lists(CHANGE, max_size=3), st.data())
def test_a_flipped_bit_never_changes_what_is_read(
    changes: list[Change], data: st.DataObject
) -> None:
    whole = bytearray(encode(header(1, 1), changes))
    place = data.draw(st.integers(0, len(whole) - 1))
    whole[place] ^= 1 << data.draw(st.integers(0, 7))
    with suppress(Damaged, NewerFormat):
        assert decode(bytes(whole)).changes == tuple(changes)


@pytest.mark.parametrize("path", [b"/etc/passwd", b"a/../b", b"a//b", b"", b"a\0b", b"."])
def test_hostile_paths_are_refused(path: bytes) -> None:
    with pytest.raises(Damaged):
        decode(encode(header(1, 1), [Set(path, entry(1))]))


@pytest.mark.parametrize("path", [b".deployment_status_do_not_delete/lock", b"a/.onesync~x"])
def test_our_own_names_are_refused(path: bytes) -> None:
    with pytest.raises(Damaged):
        decode(encode(header(1, 1), [Gone(path)]))


def test_setuid_is_refused() -> None:
    with pytest.raises(Damaged):
        decode(encode(header(1, 1), [Set(b"a", Entry(Kind.FILE, 1, 1, 0o4755, "x"))]))


def test_names() -> None:
    place = Position(7, 123)
    assert checkpoint_name(place) == "E000007-000123.jsonl.gz"
    assert parse_name(base_name(place)) == (place, True)
    assert parse_name(checkpoint_name(place)) == (place, False)
    assert parse_name("E7-1.jsonl.gz") is None
    assert parse_name("E000007-000123.jsonl.gz@ab12") is None


def test_a_renamed_directory_takes_what_is_beneath() -> None:
    tree = Tree({b"a": Entry(Kind.DIRECTORY), b"a/b": entry(1), b"ab": entry(2)})
    apply(tree, [Renamed(b"a", b"c")])
    assert tree == {b"c": Entry(Kind.DIRECTORY), b"c/b": entry(1), b"ab": entry(2)}


def test_problems_follow_their_paths() -> None:
    problems = {path: Problem(path, "behind", "") for path in (b"a/x", b"b/x", b"c/x", b"ax")}
    changes: list[Change] = [Gone(b"a"), Renamed(b"b", b"d/e"), Set(b"c/x", Entry(Kind.FILE))]
    apply(Tree(), changes, problems)
    assert problems == {path: Problem(path, "behind", "") for path in (b"ax", b"d/e/x")}


def test_no_file_is_no_head() -> None:
    assert find_head([], Manifest().read) is None


def test_the_head_folds_increments_onto_the_base() -> None:
    manifest = Manifest()
    manifest.write(1, 1, Set(b"a", entry(1)), Set(b"b", entry(1)), why="base")
    manifest.write(1, 2, Set(b"a", entry(2)))
    manifest.write(2, 1, Gone(b"b"))
    head = find_head(manifest.files, manifest.read)
    assert head is not None
    assert head.tree == {b"a": entry(2)}
    assert (head.position, head.ignored) == (Position(2, 1), [])


def test_a_torn_newest_falls_back_and_says_so() -> None:
    manifest = Manifest()
    manifest.write(1, 1, Set(b"a", entry(1)), why="base")
    torn = manifest.write(1, 2, Set(b"a", entry(2)))
    manifest.files[torn] = manifest.files[torn][:-9]
    head = find_head(manifest.files, manifest.read)
    assert head is not None
    assert head.tree == {b"a": entry(1)}
    assert torn in head.ignored[0]


def test_a_late_file_of_a_lower_epoch_is_ignored() -> None:
    manifest = Manifest()
    manifest.write(1, 1, Set(b"a", entry(1)), why="base")
    before = manifest.head
    manifest.write(1, 2, Set(b"a", entry(666)))
    manifest.head = before
    manifest.write(2, 1, Set(b"a", entry(3)))
    head = find_head(manifest.files, manifest.read)
    assert head is not None
    assert head.tree == {b"a": entry(3)}


def test_a_stale_listing_does_not_hide_the_head() -> None:
    manifest = Manifest()
    manifest.write(1, 1, Set(b"a", entry(1)), why="base")
    stale = list(manifest.files)
    manifest.write(1, 2, Set(b"a", entry(2)))
    manifest.write(1, 3, Set(b"a", entry(3)))
    head = find_head(stale, manifest.read)
    assert head is not None
    assert head.tree == {b"a": entry(3)}


@pytest.mark.parametrize("torn", [slice(0, 0), slice(0, 1), slice(0, -1)])
def test_a_torn_beginning_is_no_head(torn: slice) -> None:
    manifest = Manifest()
    name = manifest.write(1, 1, Set(b"a", entry(1)), why="base")
    manifest.files[name] = manifest.files[name][torn]
    assert find_head(manifest.files, manifest.read) is None
    manifest.files[name] = bytes(100)
    assert find_head(manifest.files, manifest.read) is None


def test_a_torn_beginning_that_was_continued_is_damaged() -> None:
    manifest = Manifest()
    name = manifest.write(1, 1, Set(b"a", entry(1)), why="base")
    manifest.write(1, 2, Set(b"a", entry(2)))
    manifest.files[name] = manifest.files[name][:-1]
    with pytest.raises(Damaged):
        find_head(manifest.files, manifest.read)


def test_what_cannot_be_read_now_is_not_passed_over() -> None:
    manifest = Manifest()
    manifest.write(1, 1, Set(b"a", entry(1)), why="base")
    newest = manifest.write(1, 2, Set(b"a", entry(2)))

    def read(name: str) -> bytes:
        if name == newest:
            raise OSError(errno.EIO, "not now")
        return manifest.read(name)

    with pytest.raises(OSError, match="not now"):
        find_head(manifest.files, read)


def test_nothing_whole_is_damaged_never_empty() -> None:
    manifest = Manifest()
    name = manifest.write(1, 1, Set(b"a", entry(1)), why="base")
    manifest.files[name] = b"zeros"
    with pytest.raises(Damaged):
        find_head(manifest.files, manifest.read)


@pytest.mark.parametrize(
    "xattrs", [{"security.selinux": "x"}, {"user.a": 1}, ["user.a"], {"user.nul\0": "x"}]
)
def test_attributes_that_are_never_restored_are_refused(xattrs: object) -> None:
    line = {"path": "a", "kind": "file", "size": 1, "mtime_ns": 1, "mode": 0, "digest": "x"}
    with pytest.raises(Damaged):
        _read_change({**line, "xattrs": xattrs})


def test_a_late_file_of_a_fenced_owner_wins_nothing_and_is_told_of() -> None:
    """Epoch 6 wrote on after epoch 7 had begun; its sequence is the higher one."""
    manifest = Manifest()
    manifest.write(6, 1, Set(b"a", entry(1)), why="base")
    before = manifest.head
    late = [manifest.write(6, n, Set(b"a", entry(600 + n))) for n in range(2, 9)]
    manifest.head = before
    manifest.write(7, 1, Set(b"a", entry(7)))
    head = find_head(manifest.files, manifest.read)
    assert head is not None
    assert (head.position, head.tree) == (Position(7, 1), Tree({b"a": entry(7)}))
    assert [sentence.partition(":")[0] for sentence in head.ignored] == late
    assert all("beside the chain" in sentence for sentence in head.ignored)


def test_a_fork_is_told_of_until_an_epoch_lies_behind_it() -> None:
    """Also where a base came before it, or before anybody read it."""
    manifest = Manifest()
    manifest.write(6, 1, Set(b"a", entry(1)), why="base")
    before = manifest.head
    fork = manifest.write(6, 2, Set(b"a", entry(666)))
    manifest.head = before
    manifest.write(7, 1, Set(b"a", entry(7)))
    manifest.write(7, 2, Set(b"a", entry(7)), why="base")
    head = find_head(manifest.files, manifest.read)
    assert head is not None
    assert head.tree == {b"a": entry(7)}
    assert head.ignored == [
        f"{fork}: it lies beside the chain, written late by one who had lost the folder"
    ]
    manifest.write(8, 1, Set(b"a", entry(8)), why="base")
    head = find_head(manifest.files, manifest.read)
    assert head is not None
    assert (head.tree, head.ignored) == (Tree({b"a": entry(8)}), [])


def test_a_torn_one_that_a_base_passed_over_is_not_told_of_again() -> None:
    manifest = Manifest()
    manifest.write(6, 1, Set(b"a", entry(1)), why="base")
    before = manifest.head
    torn = manifest.write(6, 2, Set(b"a", entry(666)))
    manifest.head = before
    manifest.files[torn] = manifest.files[torn][:-9]
    manifest.write(7, 1, Set(b"a", entry(7)), why="base")
    head = find_head(manifest.files, manifest.read)
    assert head is not None
    assert (head.tree, head.ignored) == (Tree({b"a": entry(7)}), [])


def test_an_epoch_whose_first_file_is_torn_does_not_count() -> None:
    manifest = Manifest()
    manifest.write(6, 1, Set(b"a", entry(1)), why="base")
    torn = manifest.write(7, 1, Set(b"a", entry(7)))
    manifest.write(7, 2, Set(b"a", entry(72)))
    manifest.files[torn] = b""
    head = find_head(manifest.files, manifest.read)
    assert head is not None
    assert (head.position, len(head.ignored)) == (Position(6, 1), 2)


def test_a_base_that_came_late_beside_a_checkpoint_changes_nothing() -> None:
    """Its write failed, the checkpoint took its position, and then it arrived after all."""
    manifest = Manifest()
    manifest.write(1, 1, Set(b"a", entry(1)), why="base")
    before = manifest.head
    manifest.write(1, 2, Set(b"a", entry(1)), why="base")
    manifest.head = before
    manifest.write(1, 2, Set(b"a", entry(2)))
    manifest.write(1, 3, Set(b"b", entry(3)))
    head = find_head(manifest.files, manifest.read)
    assert head is not None
    assert head.tree == {b"a": entry(2), b"b": entry(3)}
    assert "E000001-000002.base.jsonl.gz" in head.ignored[0]


def test_a_position_that_was_left_out_hides_nothing_behind_it() -> None:
    manifest = Manifest()
    stale = [manifest.write(1, 1, Set(b"a", entry(1)), why="base")]
    manifest.write(1, 4, Set(b"a", entry(4)))
    head = find_head(stale, manifest.read)
    assert head is not None
    assert (head.position, head.ignored) == (Position(1, 4), [])


def test_what_a_beat_told_of_is_found_or_missed() -> None:
    manifest = Manifest()
    stale = [manifest.write(1, 1, Set(b"a", entry(1)), why="base")]
    told = manifest.write(1, 40, Set(b"a", entry(2)))
    head = find_head(stale, manifest.read, [told])
    assert head is not None
    assert (head.position, head.ignored) == (Position(1, 40), [])
    del manifest.files[told]
    head = find_head(stale, manifest.read, [told])
    assert head is not None
    assert head.ignored == [f"{told}: its owner told of it, and it is not there"]


def test_a_file_of_another_folder_is_foreign() -> None:
    manifest = Manifest()
    manifest.write(1, 1, Set(b"a", entry(1)), why="base")
    place = Position(9, 1)
    other = Header("other", place, None, "w", "2026-01-01T00:00:00", "base")
    manifest.files[base_name(place)] = encode(other, [Set(b"a", entry(9))])
    head = find_head(manifest.files, manifest.read, (), "folder")
    assert head is not None
    assert head.tree == {b"a": entry(1)}
    assert "another folder" in head.ignored[0]


def test_a_folder_whose_id_was_lost_keeps_its_chain() -> None:
    manifest = Manifest()
    manifest.write(1, 1, Set(b"a", entry(1)), why="base")
    head = find_head(manifest.files, manifest.read, (), "a new id")
    assert head is not None
    assert head.tree == {b"a": entry(1)}


def test_a_file_that_cannot_be_read_now_is_not_passed_over() -> None:
    manifest = Manifest()
    manifest.write(1, 1, Set(b"a", entry(1)), why="base")
    newest = manifest.write(1, 2, Set(b"a", entry(2)))

    def read(name: str) -> bytes:
        if name == newest:
            raise OSError(5, "the mount is sick")
        return manifest.read(name)

    with pytest.raises(OSError, match="sick"):
        find_head(manifest.files, read)


def test_epochs_that_never_wrote_do_not_keep_a_reader_from_looking_further() -> None:
    manifest = Manifest()
    stale = [manifest.write(1, 1, Set(b"a", entry(1)), why="base")]
    manifest.write(1, 2, Set(b"a", entry(2)))
    first = [
        name(Position(epoch, 1)) for epoch in (2, 3, 4) for name in (checkpoint_name, base_name)
    ]
    head = find_head([*stale, *first], manifest.read)
    assert head is not None
    assert (head.position, head.ignored) == (Position(1, 2), [])


def test_what_is_read_ahead_is_what_the_search_asks_for() -> None:
    manifest = Manifest()
    manifest.write(1, 1, Set(b"a", entry(1)), why="base")
    manifest.write(1, 2, Set(b"a", entry(2)))
    manifest.write(2, 1, Set(b"a", entry(3)), why="base")
    manifest.write(2, 2, Set(b"a", entry(4)))
    newest = manifest.write(2, 4, Set(b"a", entry(5)))
    first = [checkpoint_name(Position(3, 1)), base_name(Position(3, 1))]
    asked: list[str] = []

    def read(name: str) -> bytes:
        asked.append(name)
        return manifest.read(name)

    head = find_head([*manifest.files, *first], read, [newest])
    assert head is not None
    assert sorted(asked_for(manifest.files, first, [newest])) == sorted(asked)
