"""Keypoints to heatmaps and back: one class, used by training and by serving, so the two cannot drift apart.

Encoding puts a Gaussian at each joint's exact sub-pixel place (unbiased: DARK, Zhang et al., CVPR 2020); the map
between crop and heatmap follows UDP (Huang et al., CVPR 2020): crop pixel `W - 1` is heatmap pixel `W / 4 - 1`.
Decoding is DARK's: smooth, take the logarithm, and move from the highest pixel to the top of the parabola around it.
"""

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

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

    def encode(self, keypoints: Tensor) -> Tensor:
        """Gaussians of peak 1 at `keypoints`.

        Args:
            keypoints: (N, K, 2) float, crop pixels (x, y); may lie outside, then only the tail shows.

        Returns:
            (N, K, h, w) float32 heatmaps.
        """
        rows, columns = self.heatmap_size
        points = keypoints.float() / constant(self.scale, keypoints.device)
        x = torch.arange(columns, device=points.device) - points[..., :1]  # (N, K, w)
        y = torch.arange(rows, device=points.device) - points[..., 1:]  # (N, K, h)
        variance = 2 * self.sigma**2
        return (-(y**2) / variance).exp().unsqueeze(-1) * (-(x**2) / variance).exp().unsqueeze(-2)

    def activate(self, raw: Tensor) -> Tensor:
        """Raw network output (N, K, h, w) -> float32 heatmaps whose peak is the joint's score."""
        raw = raw.float()
        if self.activation == "identity":
            return raw
        return raw.flatten(2).softmax(-1).view_as(raw) * (2 * math.pi * self.sigma**2)

    def decode(self, heatmaps: Tensor) -> tuple[Tensor, Tensor]:
        """Sub-pixel joint places and scores.

        Args:
            heatmaps: (N, K, h, w) float, as `activate` gives them.

        Returns:
            keypoints (N, K, 2) float32, crop pixels (x, y), and scores (N, K) float32 in 0..1: the OKS that the
            heatmap, read as the joint's probability over the pixels, lets this place expect (`_expected_oks`),
            calibrated where the codec has a calibration. Before that, a perfect Gaussian scores 1, a flat heatmap
            next to 0.
        """
        people, joints, rows, columns = heatmaps.shape
        heatmaps = heatmaps.float()
        if people == 0:
            return heatmaps.new_zeros(0, joints, 2), heatmaps.new_zeros(0, joints)
        smooth = self._smooth(heatmaps)
        place = smooth.flatten(2).argmax(-1)  # (N, K)
        x, y = place % columns, place // columns
        # the 3x3 neighbourhood needs a full ring, so the parabola of a border pixel is its inner neighbour's
        cx, cy = x.clamp(1, columns - 2), y.clamp(1, rows - 2)
        ring = tuple(dy * columns + dx for dy in (-1, 0, 1) for dx in (-1, 0, 1))
        places = (cy * columns + cx).unsqueeze(-1) + constant(ring, smooth.device, torch.int64)
        log = smooth.flatten(2).gather(2, places).clamp(min=FLOOR).log()  # (N, K, 9)
        gx, gy, hxx, hyy, hxy = (log @ constant(DERIVATIVES, log.device)).unbind(-1)
        det = hxx * hyy - hxy**2
        peaked = (hxx < 0) & (hyy < 0) & (det > 1e-9)  # else there is no top to move to
        det = torch.where(peaked, det, torch.ones_like(det))
        dx = torch.where(peaked, -(hyy * gx - hxy * gy) / det, 0.0) + cx - x
        dy = torch.where(peaked, -(hxx * gy - hxy * gx) / det, 0.0) + cy - y
        # a step of more than a pixel and a half is a broken parabola, not a joint: stay on the highest pixel
        sane = (dx.abs() <= 1.5) & (dy.abs() <= 1.5) & peaked
        refined = torch.stack([torch.where(sane, x + dx, x.float()), torch.where(sane, y + dy, y.float())], -1)
        return refined * constant(self.scale, refined.device), self.calibrate(self._expected_oks(heatmaps, refined))

    def calibrate(self, scores: Tensor) -> Tensor:
        """Raw scores (N, K) in 0..1 to calibrated ones; unchanged where the codec has no calibration."""
        if not self.calibration:
            return scores
        table = constant(self.calibration, scores.device, scores.dtype)  # (K, steps + 1)
        steps = table.shape[1] - 1
        left = (scores * steps).long().clamp(0, steps - 1)
        joint = torch.arange(len(table), device=scores.device)
        return torch.lerp(table[joint, left], table[joint, left + 1], scores * steps - left)

    def _expected_oks(self, heatmaps: Tensor, places: Tensor) -> Tensor:
        """(N, K) in 0..1: mean of `exp(-d^2 / (2 reach^2))` over the heatmap's mass, `d` from `places` (N, K, 2) in
        heatmap pixels, relative to what a perfect Gaussian of the codec's sigma gives."""
        rows, columns = self.heatmap_size
        reach = REACH * self.sigma
        x = constant(tuple(range(columns)), places.device) - places[..., :1]  # (N, K, w)
        y = constant(tuple(range(rows)), places.device) - places[..., 1:]  # (N, K, h)
        near_x, near_y = (-(x**2) / (2 * reach**2)).exp(), (-(y**2) / (2 * reach**2)).exp()
        mass = (near_y.unsqueeze(2) @ heatmaps.clamp(min=0) @ near_x.unsqueeze(3)).flatten(1)
        perfect = 2 * math.pi * self.sigma**2 * reach**2 / (reach**2 + self.sigma**2)
        return (mass / perfect).clamp(0, 1)

    def _smooth(self, heatmaps: Tensor) -> Tensor:
        """Gaussian blur that ignores what lies outside the map instead of taking it for zero."""
        people, joints, rows, columns = heatmaps.shape
        kernel, weight = _smoothing(SMOOTHING * self.sigma, rows, columns, heatmaps.device)
        maps = heatmaps.reshape(people * joints, 1, rows, columns)
        return (_blur(maps, kernel) / weight).view_as(heatmaps)


def _blur(maps: Tensor, kernel: Tensor) -> Tensor:
    """(N, 1, h, w) times `kernel` (taps,) along both axes; zero outside."""
    radius = len(kernel) // 2
    maps = F.conv2d(maps, kernel.view(1, 1, 1, -1), padding=(0, radius))
    return F.conv2d(maps, kernel.view(1, 1, -1, 1), padding=(radius, 0))


@lru_cache(maxsize=64)
def _smoothing(sigma: float, rows: int, columns: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The taps of a Gaussian (pixels), and the share of it (1, 1, h, w) that lies on the map, around each pixel."""
    radius = max(1, math.ceil(3 * sigma))
    with torch.inference_mode(False):
        taps = torch.arange(-radius, radius + 1, device=device, dtype=torch.float32)
        kernel = (-(taps**2) / (2 * sigma**2)).exp()
        return kernel, _blur(torch.ones(1, 1, rows, columns, device=device), kernel)


@lru_cache(maxsize=64)
def constant(numbers: tuple[object, ...], device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor that is made once and kept: making one on a GPU holds this thread up until the GPU has caught up."""
    with torch.inference_mode(False):  # so that training may use it too
        return torch.tensor(numbers, dtype=dtype, device=device)


def default_sigma(input_size: tuple[int, int]) -> float:
    """HRNet's convention, 2 at 64 heatmap rows, carried to other sizes: the same share of the crop."""
    return input_size[0] / STRIDE / 32


def merge_flip(heatmaps: Tensor, mirrored: Tensor, swaps: Tensor) -> Tensor:
    """Flip test: mean of a crop's heatmaps and its mirror image's, turned back and with left and right swapped.

    UDP's pixel mapping mirrors exactly, so no shift is needed.

    Args:
        heatmaps, mirrored: (N, K, h, w), as `HeatmapCodec.activate` gives them.
        swaps: (K,) int64, `Skeleton.swaps`.
    """
    return (heatmaps + mirrored[:, swaps].flip(-1)) / 2
