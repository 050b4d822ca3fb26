"""The bare engines: what the same work costs with no service around it, in this process, on every thread."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from app.detector import NetworkDetector
from app.images import Picture, decode
from app.pipeline import Pipeline
from app.schemas import ModelName, Options, PoseResponse
from app.settings import Settings
from model.inference import Engine

BATCH = 8
RUNS = 5  # of each engine and round


class Timed:
    """A callable that adds up the seconds spent in it."""

    def __init__(self, work: Callable[..., Any]) -> None:
        self.work, self.seconds = work, 0.0

    def __call__(self, *arguments: Any) -> Any:
        began = time.perf_counter()
        result = self.work(*arguments)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - began
        return result


@dataclass(frozen=True)
class Step:
    """Median seconds of one call: `engine` is the network alone, `around` what Python does for it in the same call."""

    engine: float
    around: float


class Bare:
    """The service's pipeline in this process; its engines report their own time."""

    def __init__(self) -> None:
        self.settings = Settings()
        self.pipeline = Pipeline.load(self.settings)
        detector = self.pipeline.detector
        assert isinstance(detector, NetworkDetector)
        self._forward, self._engine = Timed(detector.forward), Timed(self.pipeline.engine)
        self.pipeline.detector = replace(detector, forward=self._forward)
        self.pipeline.engine = cast(Engine, self._engine)
        self.options = self.pipeline.complete(Options())
        self._seconds: dict[str, list[tuple[float, float]]] = {}

    def count(self, picture: Picture) -> int:
        """How many people the service finds in a picture (H, W, 3) uint8 RGB."""
        [found] = self.pipeline.detect([picture])
        return len(self.pipeline.select(found, self.options)[0])

    def measure(self, path: Path) -> None:
        """Time detector and pose network on a picture's file, alone and in full batches; figures add up over rounds."""
        picture = decode(path.read_bytes(), self.settings.max_pixels)
        [(boxes, _)] = self.pipeline.detect([picture])
        crops = self.pipeline.cut(picture, np.resize(boxes, (BATCH, 4)), self.options)[0]
        for size in (1, BATCH):
            self._time(f"detect {size}", self._forward, self.pipeline.detect, [picture] * size)
            self._time(f"pose {size}", self._engine, self.pipeline.pose, crops[:size])

    def measure_rest(self, path: Path) -> None:
        """Time the steps of one picture that use no network."""
        data, pipeline = path.read_bytes(), self.pipeline
        picture = decode(data, self.settings.max_pixels)
        [found] = pipeline.detect([picture])
        boxes, scores = pipeline.select(found, self.options)
        crops, affines = pipeline.cut(picture, boxes, self.options)
        joints = pipeline.pose(crops)
        result = pipeline.assemble(picture, boxes, scores, joints, affines, self.options)
        result = replace(result, timings=dict.fromkeys(("decode", "detect", "pose", "queue", "total"), 0.0))
        card = pipeline.package.card
        name = ModelName(name=card.name, version=card.version)

        def write() -> str:
            return PoseResponse.build(result, pipeline.package.skeleton.joints, name).model_dump_json()

        self._time("json", self._engine, write)
        self._time("detect", self._forward, pipeline.detect, [picture])
        self._time("pose", self._engine, pipeline.pose, crops)

    def step(self, name: str) -> Step:
        """Of `measure`: `detect 1`, `detect 8`, `pose 1`, `pose 8`; of `measure_rest`: `detect`, `pose`, `json`."""
        seconds = self._seconds[name]
        return Step(statistics.median(engine for engine, _ in seconds), statistics.median(rest for _, rest in seconds))

    def bound(self, people: float) -> float:
        """Seconds per picture of so many people that the engines need at the least: crops in batches of 8, and the
        detector in batches of 1 or 8, whichever is faster."""
        detect = min(self.step("detect 1").engine, self.step(f"detect {BATCH}").engine / BATCH)
        return detect + people * self.step(f"pose {BATCH}").engine / BATCH

    def _time(self, name: str, engine: Timed, call: Callable[..., object], *arguments: object) -> None:
        call(*arguments)
        for _ in range(RUNS):
            before, began = engine.seconds, time.perf_counter()
            call(*arguments)
            total, inside = time.perf_counter() - began, engine.seconds - before
            self._seconds.setdefault(name, []).append((inside, total - inside))


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` (0..1) of the values lie."""
    return float(np.quantile(values, share))
