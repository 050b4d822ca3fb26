"""The people of one picture, as arrays: what the pipeline gives, and what drawing and the JSON are made from."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class PoseResult:
    """N persons with K joints each.

    Attributes:
        width, height: pixels of the upright picture.
        boxes: (N, 4) float32 xyxy, picture pixels.
        box_scores: (N,) float32 in 0..1.
        keypoints: (N, K, 2) float32 x, y in picture pixels; the origin is the centre of the top-left pixel.
        keypoint_scores: (N, K) float32 in 0..1.
        scores: (N,) float32 in 0..1: box score x mean score of the keypoints that count.
        timings: seconds by stage.
    """

    width: int
    height: int
    boxes: Floats
    box_scores: Floats
    keypoints: Floats
    keypoint_scores: Floats
    scores: Floats
    timings: Mapping[str, float] = field(default_factory=dict)
