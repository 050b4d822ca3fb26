"""The canary: a picture made here whose answer is taken once the models are warm, and must come again.

It says that the networks run and are the same as at the start, not that they are accurate: that is what a package's
evaluation says.
"""

import cv2
import numpy as np

from app.batching import batch_sizes
from app.images import Picture
from app.pipeline import Pipeline
from app.schemas import Options
from model.errors import PackageError

HEIGHT, WIDTH = 320, 240
BOX = (60.0, 20.0, 180.0, 300.0)
TOLERANCE = 0.5  # pixels; two runs of one engine may add in another order
APART = 1e-3  # pixels; only a network whose heatmaps are all the same has its keypoints nearer to each other


class CanaryError(PackageError):
    """The models run, but their answer is not sane."""


def canary_picture() -> Picture:
    """(320, 240, 3) uint8 RGB: a figure of plain shapes, standing upright."""
    picture = np.full((HEIGHT, WIDTH, 3), (188, 202, 212), np.uint8)
    picture[250:] = (126, 132, 110)
    cv2.circle(picture, (120, 52), 22, (222, 178, 150), -1, cv2.LINE_AA)
    cv2.rectangle(picture, (95, 80), (145, 170), (170, 50, 45), -1)
    for shoulder, hand in (((97, 88), (72, 160)), ((143, 88), (168, 160))):
        cv2.line(picture, shoulder, hand, (222, 178, 150), 14, cv2.LINE_AA)
    for hip, foot in (((106, 170), (100, 288)), ((134, 170), (140, 288))):
        cv2.line(picture, hip, foot, (50, 60, 110), 20, cv2.LINE_AA)
    return picture


def warm(pipeline: Pipeline) -> None:
    """Run every step, each network on every size of batch, and the canary twice.

    Raises:
        CanaryError: see `check_pose`.
    """
    # the detector: what it finds in a drawing is its own affair, that it runs is not
    for size in _sizes(pipeline):
        pipeline.detect([canary_picture()] * size)
    check_pose(pipeline)


def _sizes(pipeline: Pipeline) -> list[int]:
    """Batches that run all that the engines have made for batches: one item, and each size on every core."""
    cores = pipeline.runtime.threads if pipeline.runtime.sizes else 1
    return sorted({1, *(size * cores for size in batch_sizes(pipeline.most))})


def check_pose(pipeline: Pipeline) -> None:
    """Run the pose network on every size of batch, and the canary twice, without the detector.

    Raises:
        CanaryError: keypoints outside the crop, or all in one point, or not the same both times.
    """
    picture = canary_picture()
    crops, _ = pipeline.cut(picture, np.array([BOX], np.float32), Options())
    for size in _sizes(pipeline):
        pipeline.pose(crops * size)
    first, second = (pipeline.predict(picture, Options(boxes=[BOX])) for _ in range(2))
    low, high = np.array(BOX[:2]), np.array(BOX[2:])
    reach = pipeline.package.card.padding * (high - low).max()
    if (np.abs(first.keypoints[0] - (low + high) / 2) > reach).any():
        raise CanaryError("the canary's keypoints lie outside its crop; the weights or the engine are broken")
    if np.ptp(first.keypoints[0], axis=0).max() < APART:
        raise CanaryError("the canary's keypoints lie all in one point; the weights are blank")
    if np.abs(first.keypoints - second.keypoints).max() > TOLERANCE:
        raise CanaryError("the canary's keypoints differ from one run to the next; the engine is broken")
