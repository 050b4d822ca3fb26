"""Figures against values worked out by hand."""

import json
from math import exp
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.skeletons import COCO, LSP, Skeleton
from training.config import DataSet
from training.evaluation import Predictions, has_coco_labels, mapped_labels, oks_ap, pck, score_people
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


TRIO = ("nose", "left_shoulder", "right_shoulder")


@pytest.fixture
def trio(tmp_path: Path) -> tuple[Path, Person]:
    """One person of 100 square pixels, nose and shoulders labelled, the shoulders two pixels apart."""
    joints = [50, 40, 2, 51, 50, 2, 49, 50, 2]
    annotation = {"id": 0, "image_id": 7, "category_id": 3, "iscrowd": 0, "bbox": [45, 40, 10, 10], "area": 100}
    content = {
        "images": [{"id": 7, "file_name": "a.jpg", "width": 100, "height": 100}],
        "annotations": [{**annotation, "num_keypoints": 3, "keypoints": joints}],
        "categories": [{"id": 3, "name": "person", "keypoints": TRIO}],
    }
    path = tmp_path / "trio.json"
    path.write_text(json.dumps(content))
    places = np.zeros((17, 2))
    places[[COCO.joints.index(joint) for joint in TRIO]] = np.reshape(joints, (3, 3))[:, :2]
    weights = np.array([joint in TRIO for joint in COCO.joints], float)
    return path, Person(0, Path("a.jpg"), np.array([45.0, 40, 55, 50]), places, weights, 0, 7, 100)


def test_one_pixel_costs_a_small_person_what_the_formula_says(trio: tuple[Path, Person]) -> None:
    # k = 2 sigma: nose 0.052, shoulders 0.158; 2 s^2 k^2 with s^2 = 100: 0.5408 and 4.9928
    # OKS = (exp(-1 / 0.5408) + 2 exp(-1 / 4.9928)) / 3 = (0.1574 + 2 x 0.8185) / 3 = 0.598: right at .50 and .55
    path, person = trio
    assert (exp(-1 / 0.5408) + 2 * exp(-1 / 4.9928)) / 3 == pytest.approx(0.598, abs=1e-3)
    figures = oks_ap(path, [person], Predictions(person.keypoints[None] + [1, 0], np.ones((1, 17))), COCO)
    assert (figures["AP"], figures["AP50"], figures["AP75"], figures["AR"]) == (20, 100, 0, 20)
    assert oks_ap(path, [person], Predictions(person.keypoints[None], np.ones((1, 17))), COCO)["AP"] == 100


def test_swapped_shoulders_cost_a_small_person_what_the_formula_says(trio: tuple[Path, Person]) -> None:
    # two pixels apart: OKS = (1 + 2 exp(-4 / 4.9928)) / 3 = (1 + 2 x 0.4488) / 3 = 0.633: right at .50, .55 and .60
    path, person = trio
    assert (1 + 2 * exp(-4 / 4.9928)) / 3 == pytest.approx(0.633, abs=1e-3)
    figures = oks_ap(path, [person], Predictions(person.keypoints[None][:, COCO.swaps], np.ones((1, 17))), COCO)
    assert (figures["AP"], figures["AP50"], figures["AP75"]) == (30, 100, 0)


def test_figures_of_sizes_that_nobody_has_are_left_out(trio: tuple[Path, Person], data: Path) -> None:
    path, person = trio  # smaller than medium
    figures = oks_ap(path, [person], Predictions(person.keypoints[None], np.ones((1, 17))), COCO)
    assert not {"APM", "APL", "ARM", "ARL"} & set(figures)
    everyone = read_people(DataSet(name="a", annotations="people.json", images="images", licence=""), data, "coco17")
    assert "APL" in ap(data, everyone, exact(everyone))


def test_labels_are_mapped_by_name_whatever_the_skeleton(data: Path, data_set: DataSet) -> None:
    people = read_people(data_set, data, "lsp14")
    keypoints = exact(people)
    figures = oks_ap(data / "people.json", people, Predictions(keypoints, np.ones((5, 14))), LSP)
    assert figures["AP"] == 100  # neck and head_top, which the set does not label, do not count
    keypoints[:, LSP.joints.index("left_ankle")] += 500
    figures = oks_ap(data / "people.json", people, Predictions(keypoints, np.ones((5, 14))), LSP)
    assert figures["AP"] == pytest.approx(90, abs=0.1)  # 11 of 12 joints: OKS 0.917, wrong at .95 alone


def test_crowds_and_people_without_a_joint_stay_for_pycocotools_to_ignore() -> None:
    pair = Skeleton("pair", ("tail", "nose"), (0.1, 0.1), ())
    common = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 20]}
    content: dict[str, Any] = {
        "categories": [{"id": 2, "name": "dog"}, {"id": 1, "name": "person", "keypoints": ["nose", "ear"]}],
        "annotations": [
            {**common, "id": 0, "keypoints": [1, 2, 2, 3, 4, 1]},
            {**common, "id": 1, "keypoints": [0, 0, 0, 3, 4, 1], "area": 7, "iscrowd": 1},
            {**common, "id": 2, "num_keypoints": 0, "keypoints": [1, 2, 2, 3, 4, 1]},
            {**common, "id": 3, "category_id": 2, "keypoints": [1, 2, 2, 3, 4, 1]},
        ],
    }
    labels = mapped_labels(content, pair)
    assert [label["keypoints"] for label in labels] == [[0, 0, 0, 1, 2, 2], [0] * 6, [0, 0, 0, 1, 2, 2]]
    assert [label["num_keypoints"] for label in labels] == [1, 0, 0]
    assert [label["iscrowd"] for label in labels] == [0, 1, 0]
    assert [label["area"] for label in labels] == [pytest.approx(106), 7, pytest.approx(106)]
    assert min(label["id"] for label in labels) == 1


def test_all_figures_come_with_intervals_and_mpii_has_no_ap(data: Path, people: list[Person], tmp_path: Path) -> None:
    predictions = Predictions(exact(people), np.ones((5, 17)))
    figures = score_people(data / "people.json", people, predictions, COCO)
    assert figures.metrics["AP"] == figures.metrics["PCK@0.2"] == 100
    assert set(figures.intervals) == {"AP", "AP50", "AP75", "AR", "PCK@0.2"}
    mpii = tmp_path / "valid.json"
    mpii.write_text("[]")
    assert not has_coco_labels(mpii)
    assert set(score_people(mpii, people, predictions, COCO).metrics) == {"PCK@0.2", "PCK@0.2 people"}
