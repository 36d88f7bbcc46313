from __future__ import annotations

from onesync.core.legacy import linklist, links_beneath, symlink_dump

HERE = {b"", b"Runs", b"Runs/000001_Import/extra", b"Runs/000001_Import"}


def test_linklist_finds_the_directory_by_its_longest_suffix() -> None:
    content = (
        b'"/srv/old node/proj/Runs/000001_Import/extra" "movie 1.tif" "/data/a b.tif"\n'
        b'"/srv/old node/proj" "top" "Runs"\n'
    )
    assert list(linklist(content, HERE)) == [
        (b"Runs/000001_Import/extra/movie 1.tif", b"/data/a b.tif"),
        (b"top", b"Runs"),
    ]


def test_symlink_dump_is_target_then_link() -> None:
    content = b"/data/m.tif /mnt/vol-project/proj/Runs/000001_Import/extra/m.tif\n"
    assert list(symlink_dump(content, HERE)) == [
        (b"Runs/000001_Import/extra/m.tif", b"/data/m.tif")
    ]


def test_lines_that_are_not_links_or_leave_the_folder_are_left_out() -> None:
    assert list(linklist(b'nonsense\n"/x" ".." "/etc"\n"/x" "" "y"\n', HERE)) == []
    assert list(symlink_dump(b"nonsense\n/etc ..\n", HERE)) == []


def test_what_no_file_system_takes_is_no_link() -> None:
    long = b"n" * 256
    deep = b"/".join([b"d" * 200] * 21)
    for directory, name, target in (
        (b"", long, b"x"),
        (b"/" + deep, b"name", b"x"),
        (b"", b"name", b"x" * 4096),
        (b"", b"name", b"a\0b"),
    ):
        line = b'"/srv/w%b" "%b" "%b"' % (directory, name, target)
        assert list(links_beneath(line, b"/srv/w")) == [], line
        assert list(linklist(line, {b"", deep})) == [], line
    assert list(symlink_dump(b"%b /srv/w/name" % (b"x" * 4096), {b""})) == []


def test_links_of_one_working_directory_alone() -> None:
    content = (
        b'"/srv/w" "top" "Runs"\n"/srv/w/Runs/1" "a b" "/data/a b"\n'
        b'"/srv/ww" "other" "x"\n"/srv/w/../etc" "evil" "x"\n"/srv" "above" "x"\nnonsense\n'
    )
    assert list(links_beneath(content, b"/srv/w/")) == [
        (b"top", b"Runs"),
        (b"Runs/1/a b", b"/data/a b"),
    ]
