"""Figures against values worked out by hand."""

from pathlib import Path

import numpy as np
import pytest

from model.skeletons import COCO
from training.config import DataSet
from training.evaluation import Predictions, oks_ap, pck
from training.people import Person, read_people


@pytest.fixture
def people(data: Path, data_set: DataSet) -> list[Person]:
    return read_people(data_set, data, "coco17")


def exact(people: list[Person]) -> np.ndarray:
    return np.stack([person.keypoints for person in people])


def ap(data: Path, people: list[Person], keypoints: np.ndarray) -> dict[str, float]:
    return oks_ap(data / "people.json", people, Predictions(keypoints, np.ones(keypoints.shape[:2])), COCO)


def test_a_perfect_prediction_scores_one_hundred(data: Path, people: list[Person]) -> None:
    figures = ap(data, people, exact(people))
    assert figures["AP"] == figures["AP50"] == figures["AP75"] == figures["AR"] == 100
    assert pck(people, Predictions(exact(people), np.ones((5, 17))), COCO) == {"PCK@0.2": 100, "PCK@0.2 people": 5}


def test_a_shift_costs_what_the_formula_says(data: Path, people: list[Person]) -> None:
    # shift so that every person's OKS is the same known value: all joints moved by d with d^2 = 2 area (2 sigma)^2 e
    keypoints = exact(people)
    for i, person in enumerate(people):
        # e = 0.2 gives exp(-0.2) = 0.8187: right at thresholds .50 to .80, wrong at .85, .90 and .95
        reach = np.sqrt(2 * person.area * 0.2) * 2 * np.array(COCO.sigmas)
        keypoints[i, :, 0] += reach
    figures = ap(data, people, keypoints)
    assert figures["AP"] == pytest.approx(70, abs=0.1)
    assert figures["AP50"] == figures["AP75"] == 100


def test_swapping_left_and_right_keeps_the_nose_only(data: Path, people: list[Person]) -> None:
    keypoints = exact(people)[:, COCO.swaps]
    figures = ap(data, people, keypoints)
    assert figures["AP75"] == 0
    # torso: left shoulder (0.65, 0.22) to right hip (0.4, 0.53); nose exact, eyes 0.06 w and ears 0.12 w apart
    right = 0
    for person in people:
        w, h = person.box[2] - person.box[0], person.box[3] - person.box[1]
        torso = np.hypot(0.25 * w, 0.31 * h)
        right += sum(abs(gap) * w <= 0.2 * torso for gap in [0, *[0.06] * 2, *[0.12] * 2, *[0.3] * 2, *[0.4] * 4])
        right += sum(0.2 * w <= 0.2 * torso for _ in range(6))
    figure = pck(people, Predictions(keypoints, np.ones((5, 17))), COCO)["PCK@0.2"]
    assert figure == pytest.approx(100 * right / (5 * 17), abs=0.01)


def test_a_missing_person_lowers_recall_by_its_share(data: Path, people: list[Person]) -> None:
    figures = ap(data, people[:-1], exact(people[:-1]))
    assert figures["AR"] == pytest.approx(80, abs=0.1)
    assert figures["AP"] == pytest.approx(100 * 81 / 101, abs=0.1)  # precision 1 at recalls 0, 0.01 ... 0.80


def test_unlabelled_joints_do_not_count_in_pck(people: list[Person]) -> None:
    keypoints = exact(people)
    keypoints[:, 0] += 1000  # the noses are far off
    blind = [
        Person(p.set_index, p.picture, p.box, p.keypoints, np.r_[0.0, np.ones(16)], p.annotation, p.image, p.area)
        for p in people
    ]
    predictions = Predictions(keypoints, np.ones((5, 17)))
    assert pck(blind, predictions, COCO)["PCK@0.2"] == 100
    assert pck(people, predictions, COCO)["PCK@0.2"] == pytest.approx(100 * 16 / 17, abs=0.01)
