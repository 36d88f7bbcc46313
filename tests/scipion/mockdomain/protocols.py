"""One streaming protocol."""

from __future__ import annotations

import os
import time
from typing import Any

import pyworkflow.object as pwobj
import pyworkflow.protocol as pwprot
from pyworkflowtests.objects import MockImage, MockSetOfImages

SIZE = 20_000
SECONDS = 0.15


class ProtMockStream(pwprot.Protocol):  # type: ignore[misc]
    """Movies come one by one: import link, micrograph, marker, row, as the real ones do."""

    _label = "mock stream"
    stepsExecutionMode = pwprot.STEPS_SERIAL

    def _defineParams(self, form: Any) -> None:
        form.addSection("Input")
        form.addParam("count", pwprot.IntParam, default=40, label="Movies")

    def _insertAllSteps(self) -> None:
        for number in range(1, self.count.get() + 1):
            self._insertFunctionStep(self.processStep, number)
        self._insertFunctionStep(self.closeStep)

    def processStep(self, number: int) -> None:
        """Process one movie."""
        done = self._getExtraPath("DONE")
        os.makedirs(done, exist_ok=True)
        os.symlink(f"/data/movies/movie {number}.tif", self._getExtraPath(f"movie_{number}.tif"))
        temporary = self._getTmpPath(f"movie_{number}")
        os.makedirs(temporary)
        micrograph = self._getExtraPath(f"mic_{number}.mrc")
        with open(micrograph, "wb") as file:
            for _ in range(10):
                file.write(bytes([number % 256]) * (SIZE // 10))
                file.flush()
                time.sleep(SECONDS / 10)
        os.rmdir(temporary)
        with open(os.path.join(done, f"movie_{number}.TXT"), "w"):
            pass
        output = getattr(self, "outputImages", None)
        if output is None:
            output = MockSetOfImages.create(self._getPath())
            output.setStreamState(pwobj.Set.STREAM_OPEN)
            self._defineOutputs(outputImages=output)
        output.enableAppend()
        output.append(MockImage(location=micrograph))
        output.write()
        self._store(output)

    def closeStep(self) -> None:
        """Close the stream."""
        self.outputImages.setStreamState(pwobj.Set.STREAM_CLOSED)
        self.outputImages.write()
        self._store(self.outputImages)
