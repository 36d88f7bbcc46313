"""Two providers of one space, and what each shows of the other."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.standin.providers import Providers
from tests.standin.test_faults import errno_of

pytestmark = pytest.mark.fuse


@pytest.fixture
def providers(tmp_path: Path) -> Iterator[Providers]:
    """Two providers that exchange when asked to, with ``project`` on both."""
    with Providers(tmp_path) as both:
        (both.one.path / "project").mkdir()
        both.exchange()
        yield both


@pytest.fixture
def one(providers: Providers) -> Path:
    return providers.one.path / "project"


@pytest.fixture
def two(providers: Providers) -> Path:
    return providers.two.path / "project"


def shown(path: Path) -> list[str]:
    return sorted(os.listdir(path))


def test_changes_are_seen_after_an_exchange(providers: Providers, one: Path, two: Path) -> None:
    (one / "file").write_bytes(b"first")
    (two / "directory").mkdir()
    assert shown(two) == ["directory"]
    providers.exchange()
    assert shown(one) == shown(two) == ["directory", "file"]
    assert (two / "file").read_bytes() == b"first"
    (two / "file").write_bytes(b"and")
    (one / "directory").rename(one / "moved")
    (two / "directory" / "inside").write_bytes(b"x")
    providers.exchange()
    assert (one / "file").read_bytes() == b"and"
    assert (two / "moved" / "inside").read_bytes() == (one / "moved" / "inside").read_bytes()
    (one / "file").unlink()
    providers.exchange()
    assert shown(one) == shown(two) == ["moved"]


def test_a_file_that_replaces_another_does_so_on_both(
    providers: Providers, one: Path, two: Path
) -> None:
    (one / "file").write_bytes(b"old")
    providers.exchange()
    (one / "temporary").write_bytes(b"new")
    (one / "temporary").replace(one / "file")
    providers.exchange()
    assert shown(two) == ["file"]
    assert (two / "file").read_bytes() == b"new"


def test_a_partition_keeps_everything_apart(providers: Providers, one: Path, two: Path) -> None:
    providers.partition()
    (one / "file").write_bytes(b"x")
    providers.exchange()
    assert shown(two) == []
    providers.heal()
    providers.exchange()
    assert shown(two) == ["file"]


def test_both_create_the_lock_and_only_a_listing_tells(
    providers: Providers, one: Path, two: Path
) -> None:
    for side, holder in ((one, b"one"), (two, b"two")):
        fd = os.open(side / "lock", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        os.write(fd, holder)
        os.close(fd)
    providers.exchange()
    assert ((one / "lock").read_bytes(), (two / "lock").read_bytes()) == (b"one", b"two")
    assert shown(one) == ["lock", "lock@2b2b"]
    assert shown(two) == ["lock", "lock@1a1a"]
    assert (one / "lock@2b2b").read_bytes() == b"two"
    (one / "lock").write_bytes(b"one, beat")
    providers.exchange()
    assert (two / "lock@1a1a").read_bytes() == b"one, beat"
    (two / "lock").unlink()
    providers.exchange()
    assert shown(one) == shown(two) == ["lock"]
    assert (two / "lock").read_bytes() == b"one, beat"


def test_a_foreign_twin_can_be_removed(providers: Providers, one: Path, two: Path) -> None:
    for side in (one, two):
        (side / "lock").write_bytes(b"x")
    providers.exchange()
    (one / "lock@2b2b").unlink()
    providers.exchange()
    assert shown(one) == shown(two) == ["lock"]


def test_both_make_the_same_epoch(providers: Providers, one: Path, two: Path) -> None:
    providers.partition()
    for side in (one, two):
        (side / "000007").mkdir()
        assert errno_of(os.mkdir, side / "000007") == errno.EEXIST
        (side / "000007" / "record").write_bytes(side.parent.parent.name.encode())
    providers.heal()
    providers.exchange()
    assert shown(one) == ["000007", "000007@2b2b"]
    assert shown(two) == ["000007", "000007@1a1a"]
    assert (one / "000007" / "record").read_bytes() == b"one"
    assert (one / "000007@2b2b" / "record").read_bytes() == b"two"


def test_where_both_wrote_a_file_the_greater_provider_stands(
    providers: Providers, one: Path, two: Path
) -> None:
    (one / "file").write_bytes(b"before")
    providers.exchange()
    (two / "file").write_bytes(b"two")
    (one / "file").write_bytes(b"one, later")
    providers.exchange()
    assert (one / "file").read_bytes() == (two / "file").read_bytes() == b"two"


def test_they_exchange_by_themselves(tmp_path: Path) -> None:
    with Providers(tmp_path, interval=0.05) as both:
        (both.one.path / "file").write_bytes(b"x")
        while not (both.two.path / "file").exists():
            time.sleep(0.01)
