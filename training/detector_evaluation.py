"""COCO box figures of a person detector on the validation pictures."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from model.person_detector import Boxes, Image, PersonDetector, Scores
from training.detector_data import read_boxes

VALIDATION = "detect/person_boxes_val.json"
FIGURES = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR1", "AR10", "AR")
PROTOCOL = (
    "COCO box evaluation (pycocotools) on 155 COCO 2017 val pictures, every person boxed; area = 0.53 x box area, "
    "so sizes and AP are near to COCO's own but not the same; scores from 0.001, at most 100 boxes a picture"
)


def evaluate_detector(
    detector: PersonDetector, data_root: Path, annotations: str = VALIDATION, limit: int | None = None
) -> dict[str, float]:
    """COCO box figures of a detector, each in 0..1.

    AP, AP50, AP75, AP_small, AP_medium, AP_large, AR1, AR10, AR; and F1, the best one at an overlap of 0.5, with
    F1_threshold, the score above which it is reached.

    Build the detector with `score=0.001`: boxes it leaves out cannot count. `limit` takes the first pictures only.
    A figure for which there is no box of that size is -1, as pycocotools has it.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    images, by_image = read_boxes(data_root / annotations)
    images = images[:limit]
    truth, found = COCO(), COCO()
    truth.dataset = {
        "images": [{key: image[key] for key in ("id", "width", "height")} for image in images],
        "annotations": [a for image in images for a in by_image[image["id"]]],
        "categories": [{"id": 1, "name": "person"}],
    }
    rows: list[dict[str, Any]] = []
    for image, (boxes, scores) in zip(images, _detect_all(detector, data_root, images), strict=True):
        for (x1, y1, x2, y2), score in zip(boxes.tolist(), scores.tolist(), strict=True):
            row = {"id": len(rows) + 1, "image_id": image["id"], "category_id": 1, "iscrowd": 0, "score": score}
            rows.append({**row, "bbox": [x1, y1, x2 - x1, y2 - y1], "area": 0.53 * (x2 - x1) * (y2 - y1)})
    found.dataset = {**truth.dataset, "annotations": rows}
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        found.createIndex()
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    figures = {name: float(value) for name, value in zip(FIGURES, evaluation.stats, strict=False)}
    return {**figures, **_best_f1(evaluation)}


def _best_f1(evaluation: Any) -> dict[str, float]:
    """The best F1 at an overlap of 0.5, over all sizes, and the score above which it is reached."""
    recall = np.asarray(evaluation.params.recThrs)
    precision = evaluation.eval["precision"][0, :, 0, 0, -1]  # (R,) at IoU 0.5, all areas, 100 boxes
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-9)
    best = int(f1.argmax())
    return {"F1": float(f1[best]), "F1_threshold": float(evaluation.eval["scores"][0, best, 0, 0, -1])}


def _detect_all(
    detector: PersonDetector, data_root: Path, images: list[dict[str, Any]]
) -> Iterator[tuple[Boxes, Scores]]:
    for start in range(0, len(images), detector.batch):
        yield from detector.detect([_read(data_root / i["file_name"]) for i in images[start : start + detector.batch]])


def _read(path: Path) -> Image:
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if picture is None:
        raise FileNotFoundError(f"{path} cannot be read; is the data root right?")
    return np.ascontiguousarray(picture[:, :, ::-1], dtype=np.uint8)
