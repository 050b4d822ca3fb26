"""Contact sheets of predictions: people are easier to judge by eye than by a figure."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from model.crop import transform
from model.drawing import draw
from model.skeletons import Skeleton
from training.evaluation import LabelledCrops, Predictions

COLUMNS, HEIGHT = 8, 256

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class OnePerson:
    """`model.drawing.People` of a single crop."""

    boxes: Floats
    keypoints: Floats
    keypoint_scores: Floats
    scores: Floats


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
        from_picture = np.linalg.inv(np.vstack([labelled.affines[index], [0, 0, 1]]))[:2]
        keypoints = (transform(found.keypoints[index], from_picture) + 0.5) * scale - 0.5
        person = OnePerson(
            boxes=np.array([[0, 0, large.shape[1], large.shape[0]]], np.float32),
            keypoints=keypoints[None].astype(np.float32),
            keypoint_scores=found.scores[index][None],
            scores=found.scores[index].mean(keepdims=True),
        )
        tiles.append(draw(np.asarray(large, np.uint8), person, skeleton, ["skeleton", "score"], keypoint_score))
    blank = np.zeros_like(tiles[0])
    tiles += [blank] * (-len(tiles) % COLUMNS)
    rows = [np.concatenate(tiles[i : i + COLUMNS], 1) for i in range(0, len(tiles), COLUMNS)]
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".partial.jpg")
    if not cv2.imwrite(str(beside), cv2.cvtColor(np.concatenate(rows, 0), cv2.COLOR_RGB2BGR)):
        raise OSError(f"{beside} cannot be written")
    beside.replace(path)
