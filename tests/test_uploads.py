"""What somebody puts into OneData beside a deployment is not replaced by what is older."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.node import Node

WHOLE = b"0123456789" * 1000
ABOUT_TO_CLEAN: dict[str, object] = {
    "undeploy__clean_working_dir": True,
    "undeploy__flush_retry_seconds": 1,
}


@pytest.fixture(params=["a newcomer", "one that was pushed before"])
def movie(request: pytest.FixtureRequest, nodes: list[Node], store: Path) -> Path:
    """A file of which the node that has the folder knows the first part, in OneData."""
    one, two = nodes
    movie = store / "movie.mrc"
    if request.param == "a newcomer":
        movie.write_bytes(WHOLE[:4000])
    else:
        two.deploy()
        (two.work / "movie.mrc").write_bytes(WHOLE[:4000])
        assert two.end() == 0, two.log()
    one.configure(**ABOUT_TO_CLEAN)
    one.deploy()
    assert (one.work / "movie.mrc").read_bytes() == WHOLE[:4000]
    return movie


def test_an_upload_that_goes_on_after_the_stage_in_stays(nodes: list[Node], movie: Path) -> None:
    one, _ = nodes
    with movie.open("ab") as upload:
        upload.write(WHOLE[4000:])
    assert one.end() == 10, one.log()
    assert "movie.mrc is something else in OneData" in one.log()
    assert movie.read_bytes() == WHOLE
    assert (one.work / "movie.mrc").read_bytes() == WHOLE[:4000]
    one.configure(undeploy__clean_working_dir=False)
    one.deploy()
    assert one.end() == 0, one.log()
    assert movie.read_bytes() == WHOLE


@pytest.mark.parametrize("found", [WHOLE[:1000], bytes(1000), b""])
def test_what_was_lost_in_onedata_is_sent_anew(
    nodes: list[Node], movie: Path, found: bytes
) -> None:
    one, _ = nodes
    movie.write_bytes(found)
    assert one.end() == 0, one.log()
    assert movie.read_bytes() == WHOLE[:4000]
    assert not (one.work / "movie.mrc").exists()


def test_a_shorter_one_that_somebody_put_there_stays(nodes: list[Node], movie: Path) -> None:
    one, _ = nodes
    movie.write_bytes(b"another one")
    assert one.end() == 10, one.log()
    assert movie.read_bytes() == b"another one"
    assert (one.work / "movie.mrc").read_bytes() == WHOLE[:4000]


@pytest.fixture
def left(nodes: list[Node], store: Path) -> Path:
    """A file of an ended deployment in OneData; its node has its copy still, and takes it."""
    one, _ = nodes
    one.deploy()
    (one.work / "input.star").write_bytes(b"of the deployment")
    assert one.end() == 0, one.log()
    return store / "input.star"


@pytest.mark.parametrize("found", [b"a newer one, which is longer", b"shorter"])
def test_what_was_put_there_between_deployments_is_told(
    nodes: list[Node], left: Path, found: bytes
) -> None:
    one, _ = nodes
    left.write_bytes(found)
    one.deploy()
    (told,) = one.status()["problems"]
    assert (told["path"], told["kind"]) == ("input.star", "changed_outside")
    assert "here is still the one of that deployment" in told["text"]
    assert one.flush() == 3
    assert one.end() == 0, one.log()
    assert left.read_bytes() == found
    assert (one.work / "input.star").read_bytes() == b"of the deployment"


@pytest.mark.parametrize("found", [b"of the", bytes(9), b""])
def test_what_was_lost_between_deployments_is_sent_anew(
    nodes: list[Node], left: Path, found: bytes
) -> None:
    one, _ = nodes
    left.write_bytes(found)
    one.deploy()
    assert one.status()["problems"] == []
    assert one.flush() == 0
    assert left.read_bytes() == b"of the deployment"
    assert one.end() == 0, one.log()


def test_what_was_put_there_between_deployments_stays_before_a_cleaning(
    nodes: list[Node], left: Path
) -> None:
    one, _ = nodes
    left.write_bytes(b"a newer one, which is longer")
    one.configure(**ABOUT_TO_CLEAN)
    one.deploy()
    assert one.end() == 10, one.log()
    one.configure(undeploy__clean_working_dir=False)
    one.deploy()
    assert one.end() == 0, one.log()
    assert left.read_bytes() == b"a newer one, which is longer"
    assert (one.work / "input.star").read_bytes() == b"of the deployment"
