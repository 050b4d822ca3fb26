"""Keypoints to heatmaps and back: one class, used by training and by serving, so the two cannot drift apart.

Encoding puts a Gaussian at each joint's exact sub-pixel place (unbiased: DARK, Zhang et al., CVPR 2020); the map
between crop and heatmap follows UDP (Huang et al., CVPR 2020): crop pixel `W - 1` is heatmap pixel `W / 4 - 1`.
Decoding is DARK's: smooth, take the logarithm, and move from the highest pixel to the top of the parabola around it.

What decodes works on numpy arrays and on PyTorch tensors alike, by what both libraries call the same: a GPU's heatmaps
stay there, and serving on a CPU needs no PyTorch.
"""

import math
import sys
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

Array = Any  # a numpy array or a PyTorch tensor

STRIDE = 4
SMOOTHING = 0.7  # blur before decoding, in sigmas: calms single pixels; more would pull joints off the crop's edge
REACH = 2.0  # the score's fall-off, in sigmas: 1/16 of the crop's height, about OKS's for a shoulder or a knee
FLOOR = 1e-6  # heatmaps are clamped here before the logarithm
# Finite differences of a 3x3 neighbourhood, row after row (9): d/dx, d/dy, d2/dx2, d2/dy2, d2/dxdy
DERIVATIVES = (
    (0.0, 0.0, 0.0, 0.0, 0.25),
    (0.0, -0.5, 0.0, 1.0, 0.0),
    (0.0, 0.0, 0.0, 0.0, -0.25),
    (-0.5, 0.0, 1.0, 0.0, 0.0),
    (0.0, 0.0, -2.0, -2.0, 0.0),
    (0.5, 0.0, 1.0, 0.0, 0.0),
    (0.0, 0.0, 0.0, 0.0, -0.25),
    (0.0, 0.5, 0.0, 1.0, 0.0),
    (0.0, 0.0, 0.0, 0.0, 0.25),
)

Activation = Literal["identity", "softmax"]


@dataclass(frozen=True)
class HeatmapCodec:
    """Encode and decode heatmaps of crops of one size, batched, on any device.

    Attributes:
        input_size: crop (height, width) in pixels, divisible by 4.
        sigma: the Gaussian's standard deviation in heatmap pixels.
        activation: how the network's raw output becomes a heatmap of peak 1. `identity`: it is one already (trained
            by mean squared error). `softmax`: it holds log-probabilities over the pixels (trained by cross-entropy),
            rescaled so that a perfect Gaussian peaks at 1.
        calibration: per joint, the calibrated scores at raw scores 0 ... 1 in equal steps, never falling; `decode`
            reads its scores off the lines between them. Empty: a score stays the network's own belief.
    """

    input_size: tuple[int, int]
    sigma: float
    activation: Activation = "identity"
    calibration: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self) -> None:
        if any(side <= 0 or side % STRIDE for side in self.input_size):
            raise ValueError(f"input size {self.input_size} must be positive and divisible by {STRIDE}")
        if self.sigma <= 0:
            raise ValueError(f"sigma must be positive, not {self.sigma}")
        for row in self.calibration:
            if len(row) != len(self.calibration[0]) or len(row) < 2 or list(row) != sorted(row):
                raise ValueError("calibration must hold a row per joint, equally long, with two or more rising scores")

    @cached_property
    def heatmap_size(self) -> tuple[int, int]:
        """(height, width) of the heatmaps."""
        return self.input_size[0] // STRIDE, self.input_size[1] // STRIDE

    @cached_property
    def scale(self) -> tuple[float, float]:
        """Crop pixels per heatmap pixel, (x, y)."""
        (height, width), (rows, columns) = self.input_size, self.heatmap_size
        return (width - 1) / (columns - 1), (height - 1) / (rows - 1)

    def encode(self, keypoints: "Tensor") -> "Tensor":
        """Gaussians of peak 1 at `keypoints`.

        Args:
            keypoints: (N, K, 2) float tensor, crop pixels (x, y); may lie outside, then only the tail shows.

        Returns:
            (N, K, h, w) float32 heatmaps.
        """
        import torch

        rows, columns = self.heatmap_size
        points = keypoints.float() / constant(self.scale, keypoints)
        x = torch.arange(columns, device=points.device) - points[..., :1]  # (N, K, w)
        y = torch.arange(rows, device=points.device) - points[..., 1:]  # (N, K, h)
        variance = 2 * self.sigma**2
        maps: Tensor = (-(y**2) / variance).exp().unsqueeze(-1) * (-(x**2) / variance).exp().unsqueeze(-2)
        return maps

    def activate(self, raw: Array) -> Array:
        """Raw network output (N, K, h, w) -> float32 heatmaps whose peak is the joint's score."""
        xp = _library(raw)
        raw = xp.asarray(raw, dtype=xp.float32)
        if self.activation == "identity":
            return raw
        flat = raw.reshape(*raw.shape[:2], -1)
        flat = xp.exp(flat - xp.amax(flat, -1)[..., None])
        flat = flat * (2 * math.pi * self.sigma**2 / xp.sum(flat, -1)[..., None])
        return flat.reshape(raw.shape)

    def decode(self, heatmaps: Array) -> tuple[Array, Array]:
        """Sub-pixel joint places and scores.

        Args:
            heatmaps: (N, K, h, w) float, as `activate` gives them.

        Returns:
            keypoints (N, K, 2) float32, crop pixels (x, y), and scores (N, K) float32 in 0..1: the OKS that the
            heatmap, read as the joint's probability over the pixels, lets this place expect (`_expected_oks`),
            calibrated where the codec has a calibration. Before that, a perfect Gaussian scores 1, a flat heatmap
            next to 0. Arrays or tensors, as the heatmaps are.
        """
        xp = _library(heatmaps)
        heatmaps = xp.asarray(heatmaps, dtype=xp.float32)
        people, joints, rows, columns = heatmaps.shape
        if people == 0:
            return heatmaps.reshape(0, joints, 2), heatmaps.reshape(0, joints)
        smooth = self._smooth(heatmaps).reshape(people, joints, -1)
        place = xp.argmax(smooth, -1)  # (N, K)
        x, y = place % columns, place // columns
        # the 3x3 neighbourhood needs a full ring, so the parabola of a border pixel is its inner neighbour's
        cx, cy = xp.clip(x, 1, columns - 2), xp.clip(y, 1, rows - 2)
        ring = tuple(dy * columns + dx for dy in (-1, 0, 1) for dx in (-1, 0, 1))
        near = _take(smooth, (cy * columns + cx)[..., None] + constant(ring, heatmaps, "int64"))  # (N, K, 9)
        slopes = xp.log(xp.clip(near, FLOOR, None)) @ constant(DERIVATIVES, heatmaps)
        gx, gy, hxx, hyy, hxy = (slopes[..., i] for i in range(5))
        det = hxx * hyy - hxy**2
        peaked = (hxx < 0) & (hyy < 0) & (det > 1e-9)  # else there is no top to move to
        det = xp.where(peaked, det, 1.0)
        at = xp.asarray(xp.stack([x, y], -1), dtype=xp.float32)
        centre = xp.asarray(xp.stack([cx, cy], -1), dtype=xp.float32)
        step = xp.stack([hxy * gy - hyy * gx, hxy * gx - hxx * gy], -1) / det[..., None] + centre - at
        # a step of more than a pixel and a half is a broken parabola, not a joint: stay on the highest pixel
        sane = peaked & (xp.amax(xp.abs(step), -1) <= 1.5)
        refined = xp.where(sane[..., None], at + step, at)
        return refined * constant(self.scale, refined), self.calibrate(self._expected_oks(heatmaps, refined))

    def calibrate(self, scores: Array) -> Array:
        """Raw scores (N, K) in 0..1 to calibrated ones; unchanged where the codec has no calibration."""
        if not self.calibration:
            return scores
        xp = _library(scores)
        table = constant(self.calibration, scores)  # (K, steps + 1)
        steps = table.shape[1] - 1
        left = xp.clip(xp.asarray(scores * steps, dtype=xp.int64), 0, steps - 1)
        low, high = (_take(table[None], (left + i)[..., None])[..., 0] for i in (0, 1))
        return low + (high - low) * (scores * steps - xp.asarray(left, dtype=xp.float32))

    def _expected_oks(self, heatmaps: Array, places: Array) -> Array:
        """(N, K) in 0..1: mean of `exp(-d^2 / (2 reach^2))` over the heatmap's mass, `d` from `places` (N, K, 2) in
        heatmap pixels, relative to what a perfect Gaussian of the codec's sigma gives."""
        xp = _library(heatmaps)
        rows, columns = self.heatmap_size
        reach = REACH * self.sigma
        x = constant(tuple(range(columns)), places) - places[..., :1]  # (N, K, w)
        y = constant(tuple(range(rows)), places) - places[..., 1:]  # (N, K, h)
        near_x, near_y = xp.exp(-(x**2) / (2 * reach**2)), xp.exp(-(y**2) / (2 * reach**2))
        mass = (near_y[:, :, None] @ xp.clip(heatmaps, 0, None) @ near_x[..., None])[..., 0, 0]
        perfect = 2 * math.pi * self.sigma**2 * reach**2 / (reach**2 + self.sigma**2)
        return xp.clip(mass / perfect, 0, 1)

    def _smooth(self, heatmaps: Array) -> Array:
        """Gaussian blur that ignores what lies outside the map instead of taking it for zero."""
        rows, columns = (constant(_blurring(SMOOTHING * self.sigma, n), heatmaps) for n in self.heatmap_size)
        return rows @ heatmaps @ columns.T


@lru_cache(maxsize=64)
def _blurring(sigma: float, size: int) -> tuple[tuple[float, ...], ...]:
    """Matrix (size, size) that blurs along an axis: rows are Gaussians cut off at 3 sigma and at the borders, sum 1."""
    distance = np.arange(size) - np.arange(size)[:, None]
    weights = np.exp(-(distance**2) / (2 * sigma**2)) * (abs(distance) <= max(1, math.ceil(3 * sigma)))
    return tuple(map(tuple, (weights / weights.sum(1, keepdims=True)).tolist()))


def _library(array: Array) -> Any:
    """The module that an array's functions are in: `numpy` or `torch`."""
    return np if isinstance(array, np.ndarray) else sys.modules["torch"]


def _take(array: Array, places: Array) -> Array:
    """Elements along the last axis: (N or 1, K, P), (N, K, m) int64 -> (N, K, m)."""
    if isinstance(array, np.ndarray):
        return np.take_along_axis(np.broadcast_to(array, (*places.shape[:2], array.shape[-1])), places, -1)
    return array.expand(*places.shape[:2], -1).gather(2, places)


def constant(numbers: tuple[object, ...], like: Array, kind: str = "float32") -> Array:
    """An array or tensor beside another one, of dtype `kind`; made once and kept."""
    return _constant(numbers, None if isinstance(like, np.ndarray) else like.device, kind)


@lru_cache(maxsize=256)
def _constant(numbers: tuple[object, ...], device: Any, kind: str) -> Array:
    if device is None:
        return np.array(numbers, kind)
    import torch

    # making a tensor on a GPU holds this thread up until the GPU has caught up; outside of inference mode, so that
    # training may use it too
    with torch.inference_mode(False):
        return torch.tensor(numbers, dtype=getattr(torch, kind), device=device)


def default_sigma(input_size: tuple[int, int]) -> float:
    """HRNet's convention, 2 at 64 heatmap rows, carried to other sizes: the same share of the crop."""
    return input_size[0] / STRIDE / 32


def merge_flip(heatmaps: Array, mirrored: Array, swaps: np.ndarray) -> Array:
    """Flip test: mean of a crop's heatmaps and its mirror image's, turned back and with left and right swapped.

    UDP's pixel mapping mirrors exactly, so no shift is needed.

    Args:
        heatmaps, mirrored: (N, K, h, w), as `HeatmapCodec.activate` gives them.
        swaps: (K,) int64, `Skeleton.swaps`.
    """
    xp = _library(heatmaps)
    return (heatmaps + xp.flip(mirrored[:, constant(tuple(swaps.tolist()), mirrored, "int64")], (-1,))) / 2
