"""Validation: keypoints of labelled people with their ground-truth boxes, scored by OKS-AP and PCK.

OKS-AP is pycocotools' (Lin et al., 2014). PCK@0.2 counts a joint as right when it lies within 0.2 torso lengths of
its label (left shoulder to right hip, Yang and Ramanan, 2013); where the torso is not labelled, people are left out.
"""

import contextlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from model.codec import HeatmapCodec
from model.inference import Engine, cut_crops, estimate, person_scores, to_picture
from model.skeletons import Skeleton
from training.people import Person, read_json, read_picture

BATCH = 32
AP_NAMES = ("AP", "AP50", "AP75", "APM", "APL", "AR", "AR50", "AR75", "ARM", "ARL")


@dataclass(frozen=True)
class Predictions:
    """Keypoints of people, in their order: `keypoints` (N, K, 2) picture pixels and `scores` (N, K) in 0..1."""

    keypoints: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True)
class LabelledCrops:
    """People and their crops, cut once so that they can be validated many times.

    Attributes:
        crops: (N, H, W, 3) uint8 RGB.
        affines: (N, 2, 3) float64, crop -> picture.
    """

    people: Sequence[Person]
    crops: np.ndarray
    affines: np.ndarray

    @classmethod
    def cut(cls, people: Sequence[Person], size: tuple[int, int], padding: float) -> "LabelledCrops":
        """Decode the pictures of `people` and cut their boxes."""
        crops, affines = np.empty((len(people), *size, 3), np.uint8), np.empty((len(people), 2, 3))
        by_picture: dict[Path, list[int]] = {}
        for index, person in enumerate(people):
            by_picture.setdefault(person.picture, []).append(index)
        for path, indices in by_picture.items():
            boxes = np.stack([people[index].box for index in indices])
            crops[indices], affines[indices] = cut_crops(read_picture(path), boxes, size, padding)
        return cls(people, crops, affines)


def predict(
    engine: Engine,
    labelled: LabelledCrops,
    codec: HeatmapCodec,
    skeleton: Skeleton,
    flip_test: bool,
    tick: Callable[[int], object] = int,
) -> Predictions:
    """Run every crop through the network; `tick` is called with the number of people done."""
    keypoints, scores = [], []
    for start in range(0, len(labelled.people), BATCH):
        points, values = estimate(engine, labelled.crops[start : start + BATCH], codec, skeleton, flip_test)
        keypoints.append(to_picture(points, labelled.affines[start : start + BATCH]))
        scores.append(values)
        tick(len(values))
    return Predictions(np.concatenate(keypoints), np.concatenate(scores))


def oks_ap(
    annotations: Path, people: Sequence[Person], predictions: Predictions, skeleton: Skeleton
) -> dict[str, float]:
    """COCO's keypoint figures in percent, keys as in `AP_NAMES`.

    A person's score is `model.inference.person_scores`. All of the set's annotations are the truth, so a person
    without a prediction counts as missed.
    """
    results = [
        {
            "image_id": person.image,
            "category_id": 1,
            "keypoints": np.concatenate([keypoints, scores[:, None]], 1).ravel().tolist(),
            "score": float(score),
        }
        for person, keypoints, scores, score in zip(
            people, predictions.keypoints, predictions.scores, person_scores(predictions.scores), strict=True
        )
    ]
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        truth = COCO()
        truth.dataset = _complete(read_json(annotations))
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "keypoints")
        evaluation.params.kpt_oks_sigmas = np.array(skeleton.sigmas)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {name: round(100 * float(value), 2) for name, value in zip(AP_NAMES, evaluation.stats, strict=True)}


def _complete(dataset: dict[str, Any]) -> dict[str, Any]:
    return {**dataset, "info": dataset.get("info", {})}


def pck(
    people: Sequence[Person], predictions: Predictions, skeleton: Skeleton, threshold: float = 0.2
) -> dict[str, float]:
    """PCK@threshold in percent over labelled joints, `{"PCK@0.2": ..., "PCK@0.2 people": people with a torso}`."""
    truth = np.stack([person.keypoints for person in people])
    labelled = np.stack([person.weights for person in people]) > 0
    torso = []
    for a, b in (("left_shoulder", "right_hip"), ("right_shoulder", "left_hip")):
        i, j = skeleton.joints.index(a), skeleton.joints.index(b)
        length = np.linalg.norm(truth[:, i] - truth[:, j], axis=1)
        torso.append(np.where(labelled[:, i] & labelled[:, j], length, np.nan))
    size = np.where(np.isnan(torso[0]), torso[1], torso[0])
    usable = labelled & ~np.isnan(size)[:, None]
    distance = np.linalg.norm(predictions.keypoints - truth, axis=2)
    right = distance <= threshold * size[:, None]
    share = 100 * float(right[usable].mean()) if usable.any() else float("nan")
    return {f"PCK@{threshold}": round(share, 2), f"PCK@{threshold} people": float((~np.isnan(size)).sum())}
