"""Paths from outside never lead out, with openat2 and without."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from onesync import beneath
from onesync.beneath import open_beneath, open_plain


@pytest.fixture(params=["openat2", "walk"])
def root(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[int]:
    if request.param == "walk":
        # As in a sandbox whose filter answers ENOSYS.
        def unknown(*_: object) -> int:
            raise OSError(errno.ENOSYS, "Function not implemented")

        monkeypatch.setattr(beneath, "_openat2", unknown)
    (tmp_path / "secret").write_bytes(b"outside")
    top = tmp_path / "top"
    (top / "a" / "b").mkdir(parents=True)
    (top / "a" / "b" / "file").write_bytes(b"inside")
    (top / "out").symlink_to(tmp_path)
    (top / "a" / "alias").symlink_to("b/file")
    fd = os.open(top, os.O_PATH | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def content(fd: int) -> bytes:
    with os.fdopen(fd, "rb") as file:
        return file.read()


def test_a_file_beneath_is_opened(root: int) -> None:
    assert content(open_beneath(root, b"a/b/file", os.O_RDONLY)) == b"inside"


def test_the_root_itself_is_opened(root: int) -> None:
    fd = open_beneath(root, b"", os.O_RDONLY | os.O_DIRECTORY)
    assert sorted(os.listdir(fd)) == ["a", "out"]
    os.close(fd)


@pytest.mark.parametrize("path", [b"out/secret", b"../secret", b"a/../../secret", b"/etc/passwd"])
def test_nothing_outside_is_opened(root: int, path: bytes) -> None:
    with pytest.raises(OSError, match=r".") as caught:
        open_beneath(root, path, os.O_RDONLY)
    assert caught.value.errno in (errno.ELOOP, errno.EXDEV, errno.ENOTDIR)


def test_no_link_is_followed_even_inside(root: int) -> None:
    with pytest.raises(OSError, match="symbolic links"):
        open_beneath(root, b"a/alias", os.O_RDONLY)


@pytest.mark.usefixtures("root")
def test_an_absolute_path_is_opened_without_links(tmp_path: Path) -> None:
    top = os.fsencode(tmp_path / "top")
    assert content(open_plain(top + b"/a/b/file", os.O_RDONLY)) == b"inside"
    with pytest.raises(OSError, match=r"symbolic links|Not a directory"):
        open_plain(top + b"/out/secret", os.O_RDONLY)
