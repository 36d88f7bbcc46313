"""What the test does inside Scipion: ``project.py run|look PROJECT``, in Scipion's interpreter."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import pyworkflow as pw
from mockdomain import Domain
from mockdomain.protocols import ProtMockStream
from pyworkflow.project import Project


def run(path: str) -> None:
    """Make a project in the directory ``path`` and run the streaming protocol to its end."""
    os.chdir(path)
    project = Project(Domain, path)
    project.create()
    protocol = project.newProtocol(ProtMockStream, count=40)
    project.launchProtocol(protocol, wait=True)


def look(path: str) -> dict[str, Any]:
    """Open a project as Scipion's own window does; return each run's status and its items."""
    os.chdir(path)
    project = Project(Domain, path)
    project.load()
    runs = []
    for protocol in project.getRuns():
        output = getattr(protocol, "outputImages", None)
        items = [] if output is None else [image.getFileName() for image in output]
        runs.append({"name": str(protocol), "status": protocol.getStatus(), "items": items})
    return {"runs": runs}


def main() -> None:
    """Do what the command line says; answers are one line of JSON at the end."""
    verb, path = sys.argv[1:]
    pw.Config.setDomain("mockdomain")
    if verb == "run":
        run(path)
    else:
        print(json.dumps(look(path)))


if __name__ == "__main__":
    main()
