"""Crop geometry: from a person's box to the network's input and back, the same for training and serving.

Frames. *Picture*: pixels of the oriented picture, origin at the centre of the top-left pixel. *Crop*: pixels of the
network's input, likewise. Mapping follows UDP (Huang et al., "The Devil is in the Details", CVPR 2020): the region's
width spans `width - 1` steps between pixel centres, so that mirroring a crop is exactly `x -> width - 1 - x`.
Sizes are `(height, width)`, as the field writes them ("256x192"). Affines are (2, 3) float64, `[x', y'] = A [x, y, 1]`.
"""

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
        scale = np.array([(width - 1) / self.extent[0], (height - 1) / self.extent[1]])
        cos, sin = np.cos(self.rotation), np.sin(self.rotation)
        linear = scale[:, None] * np.array([[cos, -sin], [sin, cos]])
        offset = np.array([(width - 1) / 2, (height - 1) / 2]) - linear @ self.center
        return np.concatenate([linear, offset[:, None]], 1)


def invert(affine: np.ndarray) -> np.ndarray:
    """(2, 3) float64: the exact inverse of an affine."""
    linear = np.linalg.inv(affine[:, :2])
    return np.concatenate([linear, -(linear @ affine[:, 2:])], 1)


def compose(outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """(2, 3) float64: the affine that applies `inner`, then `outer`."""
    linear = outer[:, :2] @ inner[:, :2]
    return np.concatenate([linear, outer[:, :2] @ inner[:, 2:] + outer[:, 2:]], 1)


def transform(points: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Apply an affine to `points` (..., 2); returns (..., 2) float64."""
    moved: np.ndarray = np.asarray(points, np.float64) @ affine[:, :2].T + affine[:, 2]
    return moved


def cut(picture: np.ndarray, affine: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear crop of `picture` (H, W, 3) uint8; black outside. Returns (height, width, 3) uint8.

    Only the part of the picture that the crop can see is touched, and where the crop shrinks it by more than two it
    is first reduced by area averaging, so that large pictures do not alias.
    """
    height, width = size
    corners = transform(
        np.array([[0, 0], [width - 1, 0], [0, height - 1], [width - 1, height - 1]], np.float64), invert(affine)
    )
    limits = np.array([picture.shape[1], picture.shape[0]])
    low = np.clip(np.floor(corners.min(0)).astype(int) - 2, 0, limits - 1)
    high = np.clip(np.ceil(corners.max(0)).astype(int) + 3, low + 1, limits)
    view = picture[low[1] : high[1], low[0] : high[0]]
    to_picture = np.array([[1.0, 0.0, low[0]], [0.0, 1.0, low[1]]])
    shrink = 1 / np.sqrt(abs(np.linalg.det(affine[:, :2])))
    if shrink > 2:
        full = np.array([view.shape[1], view.shape[0]])
        reduced = np.maximum(1, np.round(full * 1.5 / shrink).astype(int))
        view = cv2.resize(view, (int(reduced[0]), int(reduced[1])), interpolation=cv2.INTER_AREA)
        ratio = full / reduced  # pixel edges coincide, so centres move by half the ratio
        shift = (ratio - 1) / 2
        to_picture = compose(to_picture, np.array([[ratio[0], 0.0, shift[0]], [0.0, ratio[1], shift[1]]]))
    return cv2.warpAffine(view, compose(affine, to_picture), (width, height), flags=cv2.INTER_LINEAR)
