"""Find people: pictures in, boxes out, with any ultralytics detection network.

The steps stand apart, so that another engine can take over the middle one:
`prepare` (letterbox to a square) -> `forward` (the network) -> `boxes` (scores, suppression, back to picture pixels).
`letterbox` and `normalise` are the halves of `prepare`: bytes go to an engine, which makes numbers of them itself.
Only the network needs PyTorch and ultralytics; a package's is not built before it is asked for.
Nothing here reaches for the network; see `model.offline`.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from model.errors import PackageError
from model.offline import keep_ultralytics_offline

if TYPE_CHECKING:
    import torch
    from torch import nn

Image = npt.NDArray[np.uint8]
Boxes = npt.NDArray[np.float32]
Scores = npt.NDArray[np.float32]

GREY = 114  # letterbox border; ultralytics trains with this value
WEIGHTS, CARD, NETWORK = "weights.safetensors", "card.json", "network.yaml"
MODULES = {"nn.Upsample", "nn.Identity", "nn.MaxPool2d", "nn.ZeroPad2d", "nn.ConvTranspose2d", "nn.BatchNorm2d"}


@dataclass(frozen=True)
class Letterbox:
    """How a picture of `width` x `height` pixels lies in the square: scaled per axis, then moved by `left`, `top`.

    The two scales differ only because the scaled picture has whole pixels.
    """

    width: int
    height: int
    scale_x: float
    scale_y: float
    left: int
    top: int

    def to_square(self, boxes: Boxes) -> Boxes:
        """Boxes (N, 4) float32 xyxy from picture pixels to square pixels."""
        return np.asarray(boxes * self._scale + self._shift, dtype=np.float32)

    def to_picture(self, boxes: Boxes) -> Boxes:
        """Boxes (N, 4) float32 xyxy from square pixels to picture pixels, cut to the picture."""
        moved = (boxes - self._shift) / self._scale
        limit = np.array([self.width, self.height] * 2, dtype=np.float32)
        return np.asarray(np.clip(moved, 0, limit), dtype=np.float32)

    @property
    def _scale(self) -> Boxes:
        return np.array([self.scale_x, self.scale_y] * 2, dtype=np.float32)

    @property
    def _shift(self) -> Boxes:
        return np.array([self.left, self.top] * 2, dtype=np.float32)


def letterbox(image: Image, size: int) -> tuple[Image, Letterbox]:
    """Scale a picture (H, W, 3) uint8 into a square (size, size, 3) uint8, keeping its aspect, with grey borders.

    Box coordinates count pixel edges: (0, 0) is the top-left corner of the top-left pixel, on both sides.
    """
    import cv2

    height, width = image.shape[:2]
    ratio = size / max(height, width)
    new_width, new_height = max(1, round(width * ratio)), max(1, round(height * ratio))
    if (new_width, new_height) != (width, height):
        method = cv2.INTER_AREA if ratio < 0.5 else cv2.INTER_LINEAR
        image = np.asarray(cv2.resize(image, (new_width, new_height), interpolation=method), dtype=np.uint8)
    left, top = (size - new_width) // 2, (size - new_height) // 2
    square = np.full((size, size, 3), GREY, dtype=np.uint8)
    square[top : top + new_height, left : left + new_width] = image
    return square, Letterbox(width, height, new_width / width, new_height / height, left, top)


def normalise(squares: "torch.Tensor") -> "torch.Tensor":
    """Squares (N, S, S, 3) uint8 as the network takes them: (N, 3, S, S) float32 in 0..1."""
    return squares.permute(0, 3, 1, 2).float() / 255


class PersonDetector:
    """A detection network and what surrounds it. The network is not thread-safe: let one thread own it.

    Args:
        network: an ultralytics DetectionModel, or what makes one when it is asked for; it is put into eval mode on
            `device`.
        size: side of the square input in pixels, a multiple of the largest stride (32).
        score: boxes below this score are left out; the caller may cut higher.
        iou: suppression threshold where the network is not end-to-end.
        batch: most pictures in one forward pass.
        limit: most boxes of one picture.
        card: what is known about the weights.
        names: classes by their numbers; those of the network where None.
        end_to_end: whether the network leaves nothing to suppress; it says so itself where None.
    """

    def __init__(
        self,
        network: "nn.Module | Callable[[], nn.Module]",
        size: int,
        *,
        score: float = 0.05,
        iou: float = 0.6,
        batch: int = 16,
        limit: int = 300,
        device: str = "cpu",
        card: dict[str, Any] | None = None,
        names: dict[int, str] | None = None,
        end_to_end: bool | None = None,
    ) -> None:
        self.device = device
        self._network = network
        if names is None:
            names = dict(getattr(self.network, "names", {0: "person"}))
        self.end_to_end = bool(getattr(self.network, "end2end", False)) if end_to_end is None else end_to_end
        self.size, self.score, self.iou, self.batch, self.limit = size, score, iou, batch, limit
        self.card = card or {}
        self.person = next((index for index, name in names.items() if name.lower() == "person"), -1)
        if self.person < 0:
            raise PackageError(f"no class of this network is called 'person': it has {sorted(names.values())[:10]}")

    @cached_property
    def network(self) -> "nn.Module":
        """In evaluation mode, on the device.

        Raises:
            PackageError: a package's network cannot be built, or PyTorch is not installed.
        """
        network: Any = self._network if hasattr(self._network, "state_dict") else self._network()
        made: nn.Module = network.to(self.device).eval().requires_grad_(False)
        return made

    @property
    def least_score(self) -> float:
        """What the card says of the score from which a box is worth serving; 0.3 where it says nothing."""
        return float(self.card.get("score_threshold", 0.3))

    @property
    def example(self) -> Image:
        """(2, S, S, 3) uint8 zeros, as `letterbox` gives squares."""
        return np.zeros((2, self.size, self.size, 3), np.uint8)

    @classmethod
    def from_package(cls, folder: Path, **options: Any) -> "PersonDetector":
        """The detector of a weight package (weights.safetensors, card.json, network.yaml); never a pickle.

        `options` go to the constructor.

        Raises:
            PackageError: a file is missing, unreadable, or does not belong to the others.
        """
        folder = Path(folder)
        for name in (WEIGHTS, CARD, NETWORK):
            if not (folder / name).is_file():
                raise PackageError(f"{folder} is no detector package: {name} is missing")
        try:
            card = json.loads((folder / CARD).read_text(encoding="utf-8"))
            expected, size = str(card["sha256"]), int(card["input_size"])
        except (ValueError, KeyError, TypeError) as error:
            raise PackageError(f"{folder / CARD} lacks a readable sha256 or input_size: {error}") from error
        content = (folder / WEIGHTS).read_bytes()
        found = hashlib.sha256(content).hexdigest()
        if found != expected:
            raise PackageError(f"{folder / WEIGHTS} has sha256 {found}, its card says {expected}: copy it anew")
        names = dict(enumerate(card.get("classes", ["person"])))

        def build() -> "nn.Module":
            return _build(folder, content, names)

        end_to_end = card.get("head") == "one-to-one" if "head" in card else None
        return cls(build, size, **{"card": card, "names": names, "end_to_end": end_to_end, **options})

    @classmethod
    def from_ultralytics(cls, path: str | Path, size: int = 640, **options: Any) -> "PersonDetector":
        """Build a detector from an ultralytics detection checkpoint (.pt) on this machine.

        Such a file is a pickle: it may run code when it is opened, so only open files you trust.

        Raises:
            PackageError: there is no such file (nothing is downloaded), or it holds no detection network.
        """
        keep_ultralytics_offline()
        tasks = import_module("ultralytics.nn.tasks")
        path = Path(path)
        if not path.is_file():
            raise PackageError(f"{path} does not exist; download the checkpoint yourself and give its path")
        try:
            network, _ = tasks.load_checkpoint(path.absolute())
        except (TypeError, RuntimeError, ModuleNotFoundError, AttributeError, KeyError) as error:
            raise PackageError(f"{path} is no ultralytics checkpoint: {error}") from error
        if not isinstance(network, tasks.DetectionModel) or getattr(network, "task", "detect") != "detect":
            raise PackageError(f"{path} holds a {type(network).__name__}, not a detection network")
        return cls(network.fuse(verbose=False), size, **{"card": {"name": path.stem}, **options})

    def prepare(self, images: list[Image]) -> tuple["torch.Tensor", list[Letterbox]]:
        """Letterbox pictures, each (H, W, 3) uint8 RGB: tensor (N, 3, S, S) float32 in 0..1, and one record each."""
        import torch

        squares, records = self.letterbox(images)
        return normalise(torch.from_numpy(squares)), records

    def letterbox(self, images: list[Image]) -> tuple[Image, list[Letterbox]]:
        """The first half of `prepare`: squares (N, S, S, 3) uint8, and one record each."""
        squares, records = np.zeros((len(images), self.size, self.size, 3), dtype=np.uint8), []
        for image, square in zip(images, squares, strict=True):
            if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
                raise ValueError(f"a picture must be (H, W, 3) uint8 and not empty, not {image.shape} {image.dtype}")
            square[:], record = letterbox(image, self.size)
            records.append(record)
        return squares, records

    def forward(self, inputs: "torch.Tensor") -> "torch.Tensor":
        """Run the network on (N, 3, S, S) float32.

        Returns (N, M, 6) float32 [x1, y1, x2, y2, score, class] where it is end-to-end, else (N, 4 + classes, M)
        float32 [cx, cy, w, h, class scores]; boxes in pixels of the square.
        """
        import torch

        with torch.inference_mode():
            output = self.network(inputs.to(self.device))
        output = output[0] if isinstance(output, (tuple, list)) else output
        assert isinstance(output, torch.Tensor)
        return output.float().cpu()

    def boxes(self, output: np.ndarray, records: list[Letterbox]) -> list[tuple[Boxes, Scores]]:
        """Turn the output of `forward` into one (boxes (K, 4) xyxy picture pixels, scores (K,)) a picture."""
        results: list[tuple[Boxes, Scores]] = []
        for rows, record in zip(output, records, strict=True):
            values = self._settled(rows) if self.end_to_end else self._suppressed(rows)
            values = values[np.argsort(-values[:, 4], kind="stable")][: self.limit]
            boxes = record.to_picture(values[:, :4])
            keep = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(axis=1)
            results.append((boxes[keep], values[keep, 4]))
        return results

    def _settled(self, rows: np.ndarray) -> Boxes:
        """People (K, 5) [x1, y1, x2, y2, score] of the rows (M, 6) [x1, y1, x2, y2, score, class]."""
        return np.asarray(rows[(rows[:, 4] > self.score) & (rows[:, 5] == self.person), :5], np.float32)

    def _suppressed(self, rows: np.ndarray) -> Boxes:
        """The same of the rows (4 + classes, M) [cx, cy, w, h, class scores], overlapping ones left out."""
        import cv2

        scores = rows[4 + self.person]
        rows = rows[:, scores > self.score]
        rows = rows[:, rows[4:].argmax(0) == self.person]
        centre, sides, scores = rows[:2].T, rows[2:4].T, rows[4 + self.person]
        corners = np.concatenate([centre - sides / 2, sides], 1).astype(np.float64)
        found = cv2.dnn.NMSBoxes(corners.tolist(), scores.tolist(), self.score, self.iou)
        kept = np.asarray(found, np.int64).reshape(-1)
        return np.concatenate([centre - sides / 2, centre + sides / 2, scores[:, None]], 1)[kept].astype(np.float32)

    def detect(self, images: list[Image]) -> list[tuple[Boxes, Scores]]:
        """Find the people in pictures, each (H, W, 3) uint8 RGB.

        Returns one (boxes (K, 4) float32 xyxy in pixels of that picture, scores (K,) float32 in 0..1) a picture,
        highest score first, boxes cut to the picture.
        """
        results: list[tuple[Boxes, Scores]] = []
        for start in range(0, len(images), self.batch):
            inputs, records = self.prepare(images[start : start + self.batch])
            results += self.boxes(self.forward(inputs).numpy(), records)
        return results


def _build(folder: Path, weights: bytes, names: dict[int, str]) -> "nn.Module":
    try:
        keep_ultralytics_offline()
        from safetensors.torch import load

        tasks, utils = import_module("ultralytics.nn.tasks"), import_module("ultralytics.utils")
    except ModuleNotFoundError as error:
        raise PackageError(
            f"{folder}: this installation has no PyTorch or no ultralytics ({error}), so it serves networks that are "
            "converted already, and this one is not: convert it where they are (`pose prepare`), and bring the cache "
            "folder"
        ) from None
    try:
        description = _checked(utils.YAML.load(folder / NETWORK))
        network = tasks.DetectionModel(description, ch=3, verbose=False)
        network.end2end = bool(description.get("end2end"))  # a network with two heads infers with the other one
        network.load_state_dict({key: value.float() for key, value in load(weights).items()})
    except Exception as error:  # ultralytics turns the yaml into modules and raises whatever it meets
        raise PackageError(f"{folder}: {NETWORK} and {WEIGHTS} do not make a network: {error}") from error
    network.names = names
    fused: nn.Module = network.fuse(verbose=False)
    return fused


def _checked(description: Any) -> dict[str, Any]:
    """The network description, once it is known to name layers and nothing else.

    ultralytics evaluates `activation` as Python, and takes a layer from any global name of its own, loaders of pickles
    and of downloaded weights among them.
    """
    from ultralytics.nn import modules

    known = (set(modules.__all__) | MODULES) - {"TorchVision"}
    if not isinstance(description, dict) or "activation" in description:
        raise ValueError("the description must be a mapping without 'activation'")
    for _, _, name, _ in [*description["backbone"], *description["head"]]:
        if name not in known:
            raise ValueError(f"{name!r} is not a layer this project builds")
    return description
