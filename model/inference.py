"""From crops to keypoints in the picture: the steps after the detector that serving and validation share.

An engine is anything that maps crops to raw heatmaps; everything around it is here, so that every engine, the
validation and the service give the same keypoints.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from model.codec import Array, HeatmapCodec, merge_flip
from model.crop import Region, cut, invert, transform
from model.skeletons import Skeleton

KEYPOINT_THRESHOLD = 0.2  # HRNet's: joints scored lower do not count in their person's score


class Engine(Protocol):
    """Runs the network. One that runs on a GPU takes crops that are there already as well as arrays."""

    def __call__(self, crops: Any) -> Array:
        """(N, H, W, 3) uint8 RGB crops -> (N, K, H/4, W/4) raw heatmaps, before the codec's activation: an array, or a
        tensor where PyTorch runs the network."""
        ...


def cut_crops(
    picture: np.ndarray, boxes: np.ndarray, size: tuple[int, int], padding: float
) -> tuple[np.ndarray, np.ndarray]:
    """One crop per box.

    Args:
        picture: (H, W, 3) uint8 RGB.
        boxes: (N, 4) xyxy, picture pixels.
        size: crop (height, width).

    Returns:
        crops (N, height, width, 3) uint8 and affines (N, 2, 3) float64, crop -> picture.
    """
    crops = np.empty((len(boxes), *size, 3), np.uint8)
    affines = np.empty((len(boxes), 2, 3))
    for i, box in enumerate(boxes):
        affine = Region.around(box, size, padding).affine(size)
        crops[i] = cut(picture, affine, size)
        affines[i] = invert(affine)
    return crops, affines


def estimate(
    engine: Engine, crops: Array, codec: HeatmapCodec, skeleton: Skeleton, flip_test: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Keypoints (N, K, 2) float32 in crop pixels and scores (N, K) float32 in 0..1 for (N, H, W, 3) uint8 crops.

    Heatmaps stay where the engine leaves them; of a GPU's, only the keypoints and scores come back, at the very end.
    """
    heatmaps = codec.activate(engine(crops))
    if flip_test:
        mirror = np.ascontiguousarray(crops[:, :, ::-1]) if isinstance(crops, np.ndarray) else crops.flip(2)
        heatmaps = merge_flip(heatmaps, codec.activate(engine(mirror)), skeleton.swaps)
    keypoints, scores = codec.decode(heatmaps)
    if not isinstance(keypoints, np.ndarray):
        import torch

        found = torch.cat([keypoints, scores.unsqueeze(-1)], -1).cpu().numpy()  # (N, K, 3): one transfer
        keypoints, scores = found[..., :2], found[..., 2]
    return np.ascontiguousarray(keypoints, np.float32), np.ascontiguousarray(scores, np.float32)


def to_picture(keypoints: np.ndarray, affines: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
    """Keypoints (N, K, 2) from crop to picture pixels by one affine each; float32."""
    moved = [transform(points, affine) for points, affine in zip(keypoints, affines, strict=True)]
    return np.asarray(moved, np.float32).reshape(keypoints.shape)


def person_scores(keypoint_scores: np.ndarray, threshold: float = KEYPOINT_THRESHOLD) -> np.ndarray:
    """(N,) float32 in 0..1: mean of a person's keypoint scores that reach `threshold`, 0 where none does (HRNet's).

    Args:
        keypoint_scores: (N, K) in 0..1.
    """
    counts = keypoint_scores >= threshold
    total = np.where(counts, keypoint_scores, 0).sum(1)
    return np.asarray(total / np.maximum(counts.sum(1), 1), np.float32)
