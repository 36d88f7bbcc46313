"""The intent's file: what is written is read again, also by its older shape."""

from __future__ import annotations

import json

import pytest

from onesync.core.chain import Position
from onesync.intent import Intent, NewerFormat


def full() -> Intent:
    return Intent(
        Position(7, 124),
        new=[(b"a/\xff", b"a/.onesync~1")],
        replace=[(b"a/\xff", b"a/.onesync~2")],
        remove=[(b"gone", b".onesync~3")],
        rename=[(b"old", b"new")],
        make=[b"made"],
        promise=[b"a/\xff"],
        create=[(b"a/\xff", 3, "ab")],
        gone=[(b"z/\xff", 4, "cd")],
        append=[(b"stack", 5)],
        patch=[(b"stack", b".onesync~4")],
        ours={b".onesync~3": {b"": frozenset([b"a\xff"]), b"in": frozenset()}},
    )


def test_what_is_written_is_read_again() -> None:
    assert Intent.decode(full().encode()) == full()


def test_a_newer_intent_is_told_from_a_torn_one() -> None:
    fields = json.loads(full().encode())
    fields["format"] = 99
    with pytest.raises(NewerFormat, match="99"):
        Intent.decode(json.dumps(fields).encode())


def test_an_intent_of_format_1_is_read() -> None:
    fields = json.loads(full().encode())
    fields["format"] = 1
    del fields["create"]
    found = Intent.decode(json.dumps(fields).encode())
    assert (found.new, found.create) == (full().new, [])


def test_an_intent_without_the_later_parts_is_read() -> None:
    fields = json.loads(full().encode())
    for name in ("make", "promise", "create", "append", "patch", "gone", "ours"):
        del fields[name]
    found = Intent.decode(json.dumps(fields).encode())
    assert (found.new, found.patch, found.append) == (full().new, [], [])


@pytest.mark.parametrize("name", ["new", "replace", "remove", "rename"])
def test_an_intent_without_its_first_parts_is_none(name: str) -> None:
    fields = json.loads(full().encode())
    del fields[name]
    with pytest.raises(KeyError):
        Intent.decode(json.dumps(fields).encode())


@pytest.mark.parametrize("path", ["/etc/passwd", "../out", "a/../../out", "", "nul\0"])
def test_a_path_that_leaves_the_folder_is_refused(path: str) -> None:
    fields = json.loads(full().encode())
    fields["patch"] = [[path, "undo"]]
    with pytest.raises(ValueError, match="leaves"):
        Intent.decode(json.dumps(fields).encode())


@pytest.mark.parametrize("ours", [5, {"aside": []}, {"aside": {"": [5]}}, {"aside": {"": 5}}])
def test_an_intent_whose_directories_are_none_is_refused(ours: object) -> None:
    """What it raises is met by whoever settles it, who keeps it for a person."""
    fields = json.loads(full().encode())
    fields["ours"] = ours
    with pytest.raises((ValueError, TypeError)):
        Intent.decode(json.dumps(fields).encode())
