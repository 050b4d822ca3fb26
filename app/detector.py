"""Find people: RGB pictures in, boxes out. Which detector, and what became of the one that was asked for."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from app.engines import Runtime, create_engine, on_one_core
from app.engines.torch import Float32Head
from app.images import Picture
from model.errors import PackageError
from model.package import BUNDLED, bundled_packages
from model.person_detector import PersonDetector, normalise

logger = logging.getLogger(__name__)

Boxes = npt.NDArray[np.float32]
Scores = npt.NDArray[np.float32]


class Detector(Protocol):
    """Finds people. One thread owns it, but for calls that say they are not `alone`."""

    @property
    def name(self) -> str:
        """For `/model` and logs."""
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

    def detect(self, pictures: list[Picture], alone: bool = True) -> list[tuple[Boxes, Scores]]:  # noqa: ARG002
        """One box, the whole picture, with score 1."""
        return [(np.array([[0, 0, p.shape[1], p.shape[0]]], np.float32), np.ones(1, np.float32)) for p in pictures]


@dataclass(frozen=True)
class NetworkDetector:
    """A detection network of `model.person_detector` whose numbers an engine computes, from pixels to raw boxes."""

    name: str
    steps: PersonDetector
    forward: Callable[[np.ndarray], Tensor]

    def detect(self, pictures: list[Picture], alone: bool = True) -> list[tuple[Boxes, Scores]]:
        """See `Detector`."""
        if not pictures:
            return []
        squares, records = self.steps.letterbox(pictures)
        forward = self.forward if alone else on_one_core(self.forward)
        return self.steps.boxes(forward(squares).float().cpu(), records)


class _FromPixels(nn.Module):
    """Squares (N, S, S, 3) uint8 -> the detections alone: ultralytics networks give their inner maps as well."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.grids: dict[int, object] = {}

    def forward(self, squares: Tensor) -> Tensor:
        outputs = self.network(normalise(squares))
        first: Tensor = outputs[0] if isinstance(outputs, (tuple, list)) else outputs
        # the head has the grid of its last batch size only, while a recorded run of another goes on reading its own
        self.grids[len(squares)] = [(m.anchors, m.strides) for m in self.network.modules() if hasattr(m, "anchors")]
        return first


def _with_float32_head(network: nn.Module) -> nn.Module:
    """The ultralytics network, its last layer in float32: in bf16 a box of 300 pixels has steps of two."""
    layers = network.get_submodule("model")
    assert isinstance(layers, nn.Sequential)
    head = Float32Head(layers[-1])
    for name in ("f", "i", "end2end"):  # ultralytics asks a layer for its inputs, its number and its kind
        setattr(head, name, getattr(layers[-1], name))
    layers[-1] = head
    return network


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
    example = torch.zeros(2, steps.size, steps.size, 3, dtype=torch.uint8)
    exact = runtime.engine == "torch" and runtime.precision != "f32"
    network = _FromPixels(_with_float32_head(steps.network) if exact else steps.network)
    name = str(steps.card.get("name", folder.name))
    weights = str(steps.card.get("sha256") or f"{folder.resolve()} {folder.stat().st_mtime_ns}")
    return NetworkDetector(name, steps, create_engine(network, example, weights, runtime, cache))
