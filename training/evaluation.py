"""Evaluation: keypoints found in labelled pictures, and every figure that the labels allow.

OKS-AP is pycocotools' (Lin et al., 2014), for any skeleton: labels are mapped to it by joint name. PCK and PCKh are in
`training.pck`; the intervals in `training.bootstrap`.
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
from model.inference import Engine, estimate, person_scores, to_picture
from model.skeletons import Skeleton, map_joints
from training import pck as shares
from training.bootstrap import Matches
from training.boxes import Boxes, each_picture
from training.coco import BODY_SHARE
from training.pck import Figures
from training.people import Person, read_json

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
        for indices, cut, back in each_picture(Boxes.of_people(people), size, padding):
            crops[indices], affines[indices] = cut, back
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


def score_people(annotations: Path, people: Sequence[Person], predictions: Predictions, skeleton: Skeleton) -> Figures:
    """Every figure, with intervals, of `predictions` for the labelled `people` in their own boxes.

    OKS-AP where `annotations` is COCO's json with sizes of people, PCK@0.2 where torsos and PCKh where heads have a
    length.
    """
    keypoints = predictions.keypoints
    figures = shares.pck(people, keypoints, skeleton) | shares.pckh(people, keypoints, skeleton)
    if not has_coco_labels(annotations):
        return figures
    images = np.array([person.image for person in people])
    matched = match(annotations, images, predictions, person_scores(predictions.scores), skeleton)
    return average_precision(matched) | figures


def oks_ap(
    annotations: Path, people: Sequence[Person], predictions: Predictions, skeleton: Skeleton
) -> dict[str, float]:
    """COCO's keypoint figures in percent, keys as in `AP_NAMES`; those of sizes that no person has are left out.

    A person's score is `model.inference.person_scores`. All of the set's annotations are the truth, so a person
    without a prediction counts as missed.
    """
    images = np.array([person.image for person in people])
    return _summary(match(annotations, images, predictions, person_scores(predictions.scores), skeleton))


def pck(
    people: Sequence[Person], predictions: Predictions, skeleton: Skeleton, threshold: float = 0.2
) -> dict[str, float]:
    """PCK@threshold in percent over labelled joints, `{"PCK@0.2": ..., "PCK@0.2 people": people with a torso}`."""
    return shares.pck(people, predictions.keypoints, skeleton, threshold).metrics


def average_precision(matched: COCOeval) -> Figures:
    """COCO's figures of what `match` returns, with the intervals of AP, AP50, AP75 and AR."""
    metrics = _summary(matched)
    intervals = Matches.of(matched).intervals() if metrics else {}
    return Figures(metrics, intervals)


def has_coco_labels(annotations: Path) -> bool:
    """Whether the file is COCO's json (MPII's own formats know no sizes of people, so they have no OKS)."""
    if annotations.suffix != ".json":
        return False
    content = read_json(annotations)
    return isinstance(content, dict) and "annotations" in content


def match(
    annotations: Path, images: np.ndarray, predictions: Predictions, scores: np.ndarray, skeleton: Skeleton
) -> COCOeval:
    """pycocotools' evaluation of people found in pictures, matched with those of the json file `annotations`.

    Args:
        images: (N,) ids of the pictures that `predictions` were made in.
        scores: (N,) of the people.
    """
    content = read_json(annotations)
    rows = np.concatenate([predictions.keypoints, predictions.scores[..., None]], 2)
    rows = rows.reshape(len(images), 3 * len(skeleton))
    results = [
        {"image_id": int(image), "category_id": 1, "keypoints": row.tolist(), "score": float(score)}
        for image, row, score in zip(images, rows, scores, strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        truth = COCO()
        truth.dataset = {
            "info": {},
            "images": content["images"],
            "annotations": mapped_labels(content, skeleton),
            "categories": [{"id": 1, "name": "person"}],
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results) if results else COCO(), "keypoints")
        evaluation.params.imgIds, evaluation.params.catIds = sorted(truth.getImgIds()), [1]
        evaluation.params.kpt_oks_sigmas = np.array(skeleton.sigmas)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def mapped_labels(content: dict[str, Any], skeleton: Skeleton) -> list[dict[str, Any]]:
    """The annotations of COCO's json with the joints of `skeleton`; those the set does not know are unlabelled.

    People without a labelled joint and crowds stay in: pycocotools ignores what is found on them. Ids count from 1, for
    pycocotools takes a person with id 0 for unmatched.
    """
    category = next(category for category in content["categories"] if category.get("keypoints"))
    known = tuple(category["keypoints"])
    source = map_joints(known, skeleton.joints)
    labels = []
    for number, annotation in enumerate(content["annotations"], 1):
        if annotation.get("category_id", category.get("id")) != category.get("id"):
            continue
        joints = np.array(annotation.get("keypoints") or np.zeros((len(known), 3))).reshape(len(known), 3)
        joints = np.where(source[:, None] >= 0, joints[source], 0)
        count = int((joints[:, 2] > 0).sum()) if annotation.get("num_keypoints", 1) else 0
        width, height = annotation["bbox"][2:]
        new = {"id": number, "category_id": 1, "keypoints": joints.ravel().tolist(), "num_keypoints": count}
        labels.append({"iscrowd": 0, "area": BODY_SHARE * width * height, **annotation, **new})
    return labels


def _summary(matched: COCOeval) -> dict[str, float]:
    with contextlib.redirect_stdout(io.StringIO()):
        matched.summarize()
    figures = zip(AP_NAMES, matched.stats, strict=True)
    return {name: round(100 * float(value), 2) for name, value in figures if value >= 0}
