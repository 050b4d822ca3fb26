"""Bootstrap: the shortcut through pycocotools' matches equals evaluating the drawn pictures anew."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.cocoeval import COCOeval

from model.skeletons import COCO
from training.bootstrap import Matches, draw_pictures, share_interval
from training.evaluation import Predictions, match

PICTURES, PEOPLE = 12, 3


def write_set(path: Path, drawn: np.ndarray) -> tuple[np.ndarray, Predictions, np.ndarray]:
    """`drawn[i]` copies of picture i, with people found more or less well, some not at all and some out of nothing."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    found, places, scores = [], [], []
    for number, copies in enumerate(drawn.astype(int)):
        rng = np.random.default_rng(number)
        truth = rng.uniform(0, 400, (PEOPLE, 17, 2))
        guesses = truth + rng.normal(0, 1, truth.shape) * rng.uniform(0, 20, (PEOPLE, 1, 1))
        guesses[rng.random(PEOPLE) < 0.2] += 1000
        sure = rng.random(PEOPLE)
        for _ in range(copies):
            image = len(images) + 1
            images.append({"id": image, "file_name": f"{number}.jpg", "width": 400, "height": 400})
            for person in range(PEOPLE):
                crowd = int(number % 4 == 0 and person == 0)
                joints = np.concatenate([truth[person], np.full((17, 1), 2)], 1).ravel().tolist()
                annotations.append(
                    {
                        "id": len(annotations), "image_id": image, "category_id": 1, "iscrowd": crowd,
                        "bbox": [0, 0, 400, 400], "area": 20_000, "num_keypoints": 17, "keypoints": joints,
                    }
                )  # fmt: skip
            found += [image] * PEOPLE
            places.append(guesses)
            scores.append(sure)
    category = {"id": 1, "name": "person", "keypoints": list(COCO.joints)}
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": [category]}))
    keypoints = np.concatenate(places)
    return np.array(found), Predictions(keypoints, np.ones(keypoints.shape[:2])), np.concatenate(scores)


def evaluate(path: Path, drawn: np.ndarray) -> COCOeval:
    found, predictions, scores = write_set(path, drawn)
    evaluation = match(path, found, predictions, scores, COCO)
    evaluation.summarize()
    return evaluation


def test_counting_a_picture_twice_equals_having_it_twice(tmp_path: Path) -> None:
    whole = Matches.of(evaluate(tmp_path / "whole.json", np.ones(PICTURES)))
    for drawn in (np.ones(PICTURES), *draw_pictures(PICTURES, 3, seed=5)):
        stats = 100 * evaluate(tmp_path / "drawn.json", drawn).stats
        precision, recall = whole.figures(drawn)
        assert precision.mean() == pytest.approx(stats[0], abs=1e-9)
        assert (precision[0], precision[5]) == pytest.approx((stats[1], stats[2]), abs=1e-9)
        assert recall == pytest.approx(stats[5], abs=1e-9)
        assert 5 < stats[0] < 95


def test_the_interval_holds_the_figure_and_is_the_same_every_time(tmp_path: Path) -> None:
    evaluation = evaluate(tmp_path / "whole.json", np.ones(PICTURES))
    intervals = Matches.of(evaluation).intervals()
    low, high = intervals["AP"]
    assert low < 100 * evaluation.stats[0] < high
    assert intervals == Matches.of(evaluation).intervals()


def test_nothing_found_is_zero_for_certain(tmp_path: Path) -> None:
    write_set(tmp_path / "set.json", np.ones(PICTURES))
    nothing = Predictions(np.zeros((0, 17, 2)), np.zeros((0, 17)))
    evaluation = match(tmp_path / "set.json", np.zeros(0, int), nothing, np.zeros(0), COCO)
    assert set(Matches.of(evaluation).intervals().values()) == {(0, 0)}


def test_the_interval_of_a_share_is_that_of_drawing_pictures() -> None:
    # 100 pictures of one joint, half of them right: the standard deviation is sqrt(0.25 / 100) = 5 points, and
    # 1.96 of them on both sides are 40.2 to 59.8
    right = np.arange(100)[:, None] % 2 == 0
    low, high = share_interval(range(100), right, np.ones((100, 1), bool))
    assert low == pytest.approx(40.2, abs=1.5)
    assert high == pytest.approx(59.8, abs=1.5)
    # the same joints in two pictures, one all right and one all wrong: anything is possible
    assert share_interval([i % 2 for i in range(100)], right, np.ones((100, 1), bool)) == (0, 100)
