"""The least score of a box that is worth a look by the pose network, chosen by what comes out at the end."""

from pathlib import Path

from model.package import Package
from model.person_detector import PersonDetector
from training.config import DataSet
from training.evaluation import Predictions
from training.measuring import TorchEngine, detect_boxes, run_boxes, score_boxes

CANDIDATES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)
KEPT = 0.95  # of the best AP; AP alone never minds a false person, who costs time and stands in the answer


def end_to_end(detector: PersonDetector, package: Package, entry: DataSet, root: Path) -> dict[float, float]:
    """AP in percent by least box score: detector and pose package one after the other, without flip test.

    Raises:
        ConfigError: the set is not there, or not in COCO's format.
    """
    boxes = detect_boxes(entry, root, detector, min(CANDIDATES))
    raw = run_boxes(TorchEngine(package), package, boxes, f"{entry.name}, end to end", flip_test=False)
    found = {}
    for least in CANDIDATES:
        kept = boxes.scores >= least
        people = Predictions(raw.keypoints[kept], raw.scores[kept])
        evaluation = score_boxes(package, entry, root, boxes[kept], people, flip_test=False)
        found[least] = evaluation.metrics.get("AP", 0.0)
    return found


def least_score(found: dict[float, float]) -> float:
    """The highest of the scores that `end_to_end` tried that keeps 95 % of the best AP."""
    return max(least for least, ap in found.items() if ap >= KEPT * max(found.values()))
