"""Find people: RGB pictures in, boxes out. Which detector, and what became of the one that was asked for."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from app.engines import Runtime, create_engine, on_one_core
from app.images import Picture
from model.errors import PackageError
from model.inference import Engine
from model.package import BUNDLED, bundled_packages
from model.person_detector import PersonDetector

if TYPE_CHECKING:
    from torch import nn

logger = logging.getLogger(__name__)

Boxes = npt.NDArray[np.float32]
Scores = npt.NDArray[np.float32]


class Detector(Protocol):
    """Finds people. One thread owns it, but for calls that say they are not `alone`."""

    @property
    def name(self) -> str:
        """For `/model` and logs."""
        ...

    @property
    def least_score(self) -> float:
        """Boxes that score less are likely no people; where neither settings nor request say otherwise."""
        ...

    def detect(self, pictures: list[Picture], alone: bool = True) -> list[tuple[Boxes, Scores]]:
        """One (boxes (N, 4) float32 xyxy, picture pixels; scores (N,) float32 in 0..1) per (H, W, 3) uint8 RGB
        picture, highest score first.

        Args:
            alone: whether the call has the processor to itself. Where it has not, as many may go on side by side as the
                runtime has lanes.
        """
        ...


@dataclass(frozen=True)
class WholePicture:
    """Takes every picture for one person, as a caller does who sends pictures cut to people."""

    name: str = "none"
    least_score: float = 0.0

    def detect(self, pictures: list[Picture], alone: bool = True) -> list[tuple[Boxes, Scores]]:  # noqa: ARG002
        """One box, the whole picture, with score 1."""
        return [(np.array([[0, 0, p.shape[1], p.shape[0]]], np.float32), np.ones(1, np.float32)) for p in pictures]


@dataclass(frozen=True)
class NetworkDetector:
    """A detection network of `model.person_detector` whose numbers an engine computes, from pixels to raw boxes."""

    name: str
    steps: PersonDetector
    forward: Engine

    @property
    def least_score(self) -> float:
        """See `Detector`."""
        return self.steps.least_score

    def detect(self, pictures: list[Picture], alone: bool = True) -> list[tuple[Boxes, Scores]]:
        """See `Detector`."""
        if not pictures:
            return []
        squares, records = self.steps.letterbox(pictures)
        forward = self.forward if alone else on_one_core(self.forward)
        output = forward(squares)
        return self.steps.boxes(output if isinstance(output, np.ndarray) else output.float().cpu().numpy(), records)


@dataclass(frozen=True)
class Choice:
    """The detector that serves, and what was not used and why."""

    detector: Detector
    notes: list[str] = field(default_factory=list)


def choose_detector(setting: str, runtime: Runtime, cache: Path) -> Choice:
    """The detector of the setting `POSE_DETECTOR`; one that is missing or broken gives way to the bundled one.

    Raises:
        PackageError: the bundled detector is missing or broken.
    """
    if setting == "none":
        return Choice(WholePicture())
    if setting != "bundled":
        try:
            return Choice(_load(setting, runtime, cache))
        except Exception as error:  # noqa: BLE001 - a user's file: whatever it raises, the bundled detector serves
            note = f"detector {setting!r} is not used, the bundled one serves: {error}"
            logger.warning(note)
            return Choice(_load(_bundled(), runtime, cache), [note])
    return Choice(_load(_bundled(), runtime, cache))


def _bundled() -> str:
    names = bundled_packages(pose=False)
    if not names:
        raise PackageError(f"no detector package in {BUNDLED}; install the service anew or set POSE_DETECTOR=none")
    return names[0]


def _load(name_or_path: str, runtime: Runtime, cache: Path) -> NetworkDetector:
    bundled = BUNDLED / name_or_path
    folder = bundled if bundled.parent == BUNDLED and bundled.is_dir() else Path(name_or_path).expanduser()
    steps = PersonDetector.from_package(folder) if folder.is_dir() else PersonDetector.from_ultralytics(folder)

    def make() -> "nn.Module":
        network = steps.network
        from app.engines.detection import FromPixels, with_float32_head

        exact = runtime.engine == "torch" and runtime.precision != "f32"
        return FromPixels(with_float32_head(network) if exact else network)

    name = str(steps.card.get("name", folder.name))
    weights = str(steps.card.get("sha256") or f"{folder.resolve()} {folder.stat().st_mtime_ns}")
    return NetworkDetector(name, steps, create_engine(make, steps.example, weights, runtime, cache))
