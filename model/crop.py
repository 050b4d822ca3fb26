"""Crop geometry: from a person's box to the network's input and back, the same for training and serving.

Frames. *Picture*: pixels of the oriented picture, origin at the centre of the top-left pixel. *Crop*: pixels of the
network's input, likewise. Mapping follows UDP (Huang et al., "The Devil is in the Details", CVPR 2020): the region's
width spans `width - 1` steps between pixel centres, so that mirroring a crop is exactly `x -> width - 1 - x`.
Sizes are `(height, width)`, as the field writes them ("256x192"). Affines are (2, 3) float64, `[x', y'] = A [x, y, 1]`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import cv2
import numpy as np

PADDING = 1.25  # HRNet's share of context around the box
MIN_EXTENT = 1.0  # pixels: a thinner box is widened to this, so that its affine has an inverse


@dataclass(frozen=True)
class Region:
    """A rotated rectangle of the picture that becomes one crop.

    Attributes:
        center: (2,) float64, picture pixels.
        extent: (2,) float64, width and height in picture pixels, at the crop's aspect.
        rotation: radians; positive turns the picture's content clockwise on the screen.
    """

    center: np.ndarray
    extent: np.ndarray
    rotation: float = 0.0

    @classmethod
    def around(cls, box: np.ndarray | Sequence[float], size: tuple[int, int], padding: float = PADDING) -> Self:
        """The smallest region of the aspect of `size` (height, width) that holds `box` (4,) xyxy, times `padding`."""
        x1, y1, x2, y2 = (float(v) for v in box)
        height, width = size
        w, h = max(x2 - x1, MIN_EXTENT), max(y2 - y1, MIN_EXTENT)
        w, h = max(w, h * width / height), max(h, w * height / width)
        return cls(np.array([(x1 + x2) / 2, (y1 + y2) / 2]), np.array([w, h]) * padding)

    def affine(self, size: tuple[int, int]) -> np.ndarray:
        """(2, 3) float64: picture -> crop of `size` (height, width)."""
        height, width = size
        (x, y), (w, h) = self.center.tolist(), self.extent.tolist()
        along, down = (width - 1) / w, (height - 1) / h
        cos, sin = math.cos(self.rotation), math.sin(self.rotation)
        a, b, d, e = along * cos, -along * sin, down * sin, down * cos
        return np.array([[a, b, (width - 1) / 2 - a * x - b * y], [d, e, (height - 1) / 2 - d * x - e * y]])


def invert(affine: np.ndarray) -> np.ndarray:
    """(2, 3) float64: the exact inverse of an affine."""
    (a, b, c), (d, e, f) = affine.tolist()
    det = a * e - b * d
    inverse: np.ndarray = np.array([[e, -b, b * f - c * e], [-d, a, c * d - a * f]]) / det
    return inverse


def compose(outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """(2, 3) float64: the affine that applies `inner`, then `outer`."""
    linear = outer[:, :2] @ inner[:, :2]
    return np.concatenate([linear, outer[:, :2] @ inner[:, 2:] + outer[:, 2:]], 1)


def transform(points: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Apply an affine to `points` (..., 2); returns (..., 2) float64."""
    moved: np.ndarray = np.asarray(points, np.float64) @ affine[:, :2].T + affine[:, 2]
    return moved


@dataclass(frozen=True)
class View:
    """The part of a picture that one crop can see, and its size after the area averaging that keeps it from aliasing.

    Attributes:
        low, high: (2,) int64, its first pixel and the one past its last, (x, y).
        size: (2,) int64, width and height after averaging; `high - low` where nothing is averaged.
        affine: (2, 3) float64, averaged view -> crop.
    """

    low: np.ndarray
    high: np.ndarray
    size: np.ndarray
    affine: np.ndarray

    @property
    def ratio(self) -> np.ndarray:
        """(2,) float64: picture pixels per averaged pixel, (x, y); at least 1."""
        ratio: np.ndarray = (self.high - self.low) / self.size
        return ratio

    @classmethod
    def of(cls, shape: tuple[int, ...], affine: np.ndarray, size: tuple[int, int]) -> Self:
        """What a crop of `size` (height, width) sees of a picture of `shape` (H, W, ...); `affine`: picture -> crop."""
        # plain numbers: numpy's own cost, a dozen calls for a handful of them, was most of what a crop took
        height, width = size
        inverse, linear = invert(affine).tolist(), affine.tolist()
        shrink = 1 / math.sqrt(abs(linear[0][0] * linear[1][1] - linear[0][1] * linear[1][0]))
        axes = [_see(inverse[0], width, height, shape[1], shrink), _see(inverse[1], width, height, shape[0], shrink)]
        low, high, averaged, ratio, shift = zip(*axes, strict=True)
        within = [[p * ratio[0], q * ratio[1], p * shift[0] + q * shift[1] + offset] for p, q, offset in linear]
        return cls(np.array(low), np.array(high), np.array(averaged), np.array(within))


def _see(
    row: Sequence[float], width: int, height: int, limit: int, shrink: float
) -> tuple[int, int, int, float, float]:
    """One axis of a view: its first pixel, the one past its last, its pixels after averaging, and the map from averaged
    pixels to the picture's, `ratio * x + shift`. The axis is `p x + q y + offset` (`row`) of the crop's pixels."""
    p, q, offset = row
    ends = p * (width - 1), q * (height - 1)
    low = min(max(math.floor(offset + sum(min(0.0, end) for end in ends)) - 2, 0), limit - 1)
    high = min(max(math.ceil(offset + sum(max(0.0, end) for end in ends)) + 3, low + 1), limit)
    full = averaged = high - low
    if shrink > 2:
        averaged = max(1, round(full * 1.5 / shrink))
    ratio = full / averaged  # pixel edges coincide, so centres move by half the ratio
    return low, high, averaged, ratio, low + (ratio - 1) / 2


def cut(picture: np.ndarray, affine: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear crop of `picture` (H, W, 3) uint8; black outside. Returns (height, width, 3) uint8.

    Only the part of the picture that the crop can see is touched, and where the crop shrinks it by more than two it
    is first reduced by area averaging, so that large pictures do not alias. `model.device_crop` does the same on a GPU.
    """
    view = View.of(picture.shape, affine, size)
    part = picture[view.low[1] : view.high[1], view.low[0] : view.high[0]]
    if (view.size != view.high - view.low).any():
        part = cv2.resize(part, (int(view.size[0]), int(view.size[1])), interpolation=cv2.INTER_AREA)
    return cv2.warpAffine(part, view.affine, (size[1], size[0]), flags=cv2.INTER_LINEAR)
