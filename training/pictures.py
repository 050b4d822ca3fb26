"""Contact sheets of predictions: people are easier to judge by eye than by a figure."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from model.crop import invert, transform
from model.drawing import draw
from model.skeletons import Skeleton
from training.evaluation import LabelledCrops, Predictions
from training.sheets import OnePerson, grid, write_rows

HEIGHT = 256


def write_sheet(
    path: Path,
    labelled: LabelledCrops,
    found: Predictions,
    skeleton: Skeleton,
    chosen: Sequence[int],
    keypoint_score: float = 0.2,
) -> None:
    """Write the crops number `chosen` with their predicted skeletons, eight to a row, to the JPEG `path`."""
    tiles = []
    for index in chosen:
        crop = labelled.crops[index]
        scale = HEIGHT / crop.shape[0]
        large = cv2.resize(crop, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
        keypoints = (transform(found.keypoints[index], invert(labelled.affines[index])) + 0.5) * scale - 0.5
        person = OnePerson(
            boxes=np.array([[0, 0, large.shape[1], large.shape[0]]], np.float32),
            keypoints=keypoints[None].astype(np.float32),
            keypoint_scores=found.scores[index][None],
            scores=found.scores[index].mean(keepdims=True),
        )
        tiles.append(draw(np.asarray(large, np.uint8), person, skeleton, ["skeleton", "score"], keypoint_score))
    write_rows(path, grid(tiles, np.zeros_like(tiles[0])))
