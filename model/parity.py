"""The gate that every engine has to pass: its keypoints against those of the network in float32 PyTorch.

A shift is a distance in pixels of the picture. Joints count that the float32 network scores at least `COUNTS`: where it
sees no joint its heatmap is flat, and the highest place of a flat map may be anywhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from model.card import Shift
from model.errors import UserError
from model.inference import KEYPOINT_THRESHOLD, Engine, cut_crops, estimate, to_picture
from model.package import Package

COUNTS = KEYPOINT_THRESHOLD  # calibrated score
SHARE = 0.2  # of the joints count at least, the best ones: an early network may score none of them so high
BATCH = 8
JITTER = 0.08  # of a box's sides


class ParityError(UserError):
    """An engine moves keypoints further than it may; the message says how far."""


@dataclass(frozen=True)
class Limits:
    """Most shift of an engine, in pixels of the picture.

    Attributes:
        mean: of all joints that count.
        high: of their 99th percentile.
    """

    mean: float
    high: float


GATE = Limits(0.1, 0.5)


@dataclass(frozen=True)
class Crops:
    """Real people: crops (N, H, W, 3) uint8 RGB and affines (N, 2, 3) float64, crop -> picture."""

    pixels: np.ndarray
    affines: np.ndarray


def cut_around(picture: np.ndarray, boxes: Sequence[Sequence[float]], package: Package, times: int = 1) -> Crops:
    """Every box `times` times, moved and resized by up to `JITTER` at random, always the same.

    Args:
        picture: (H, W, 3) uint8 RGB.
        boxes: (N, 4) xyxy, picture pixels.
    """
    repeated = np.repeat(np.array(boxes, np.float32), times, 0)
    sides = np.tile(repeated[:, 2:] - repeated[:, :2], 2)
    random = np.random.default_rng(0)
    moved = repeated + random.uniform(-JITTER, JITTER, repeated.shape).astype(np.float32) * sides
    return Crops(*cut_crops(picture, moved, package.card.input_size, package.card.padding))


def join(parts: Sequence[Crops]) -> Crops:
    """All crops in one."""
    return Crops(np.concatenate([part.pixels for part in parts]), np.concatenate([part.affines for part in parts]))


def measure_shift(engine: Engine, reference: Engine, crops: Crops, package: Package) -> Shift:
    """How far `engine` moves keypoints from where `reference`, float32 PyTorch, has them; no flip test."""
    places, scores = _run(reference, crops, package)
    moved, _ = _run(engine, crops, package)
    counts = scores >= min(COUNTS, float(np.quantile(scores, 1 - SHARE)))
    shift = np.linalg.norm(moved - places, axis=-1)[counts]
    return Shift(
        joints=int(counts.sum()), mean=round(float(shift.mean()), 4), high=round(float(np.quantile(shift, 0.99)), 4)
    )


def check_shift(shift: Shift, name: str, limits: Limits = GATE) -> None:
    """Raise a ParityError where the shift is over one of the limits.

    Args:
        name: of the engine or the file, for the message.
    """
    if shift.mean > limits.mean or shift.high > limits.high:
        raise ParityError(
            f"{name} moves {shift.joints} keypoints of real people by {shift.mean:.3f} pixels on average, 99th "
            f"percentile {shift.high:.3f}, from where float32 PyTorch has them; the limits are {limits.mean:g} and "
            f"{limits.high:g}"
        )


def _run(engine: Engine, crops: Crops, package: Package) -> tuple[np.ndarray, np.ndarray]:
    parts = [
        estimate(engine, crops.pixels[i : i + BATCH], package.codec, package.skeleton, flip_test=False)
        for i in range(0, len(crops.pixels), BATCH)
    ]
    keypoints, scores = (np.concatenate(part) for part in zip(*parts, strict=True))
    return to_picture(keypoints, crops.affines), scores
