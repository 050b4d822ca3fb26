"""PCKh and its groups against counts made by hand."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from model.skeletons import LSP, MPII, Skeleton
from training.pck import FROM_JOINTS, GROUPS, pckh
from training.people import Person


def person(skeleton: Skeleton, head: float = math.nan, unlabelled: Sequence[str] = (), image: int = 1) -> Person:
    """Joints on a diagonal, 10 pixels apart in x and y; all are labelled but for those named."""
    places = np.arange(len(skeleton))[:, None] * [10.0, 10.0]
    weights = np.array([joint not in unlabelled for joint in skeleton.joints], float)
    return Person(0, Path("p.jpg"), np.array([0.0, 0, 200, 200]), places, weights, 1, image, 1e4, head)


def move(keypoints: np.ndarray, skeleton: Skeleton, joint: str, x: float) -> None:
    keypoints[0, skeleton.joints.index(joint), 0] += x


def test_a_perfect_prediction_is_one_hundred_in_every_group() -> None:
    someone = person(MPII, head=10)
    figures = pckh([someone], someone.keypoints[None], MPII)
    wanted = {f"PCKh@{threshold} {group}": 100.0 for threshold in (0.5, 0.1) for group in (*GROUPS, "mean")}
    assert figures.metrics == {**wanted, "PCKh people": 1}
    assert list(figures.metrics)[:8] == [
        f"PCKh@0.5 {group}" for group in ("head", "shoulder", "elbow", "wrist", "hip", "knee", "ankle", "mean")
    ]
    assert figures.intervals == {"PCKh@0.5 mean": (100, 100), "PCKh@0.1 mean": (100, 100)}


def test_half_a_head_is_near_enough_and_pelvis_and_thorax_do_not_count() -> None:
    someone = person(MPII, head=10)
    found = someone.keypoints[None].copy()
    move(found, MPII, "left_shoulder", 5)  # half a head length: right
    move(found, MPII, "right_shoulder", 5.01)
    for joint in ("pelvis", "thorax"):
        move(found, MPII, joint, 300)
    figures = pckh([someone], found, MPII).metrics
    assert figures["PCKh@0.5 shoulder"] == 50
    assert figures["PCKh@0.5 mean"] == 92.86  # 13 of the 14 joints that count
    assert figures["PCKh@0.1 shoulder"] == 0
    assert figures["PCKh@0.1 mean"] == 85.71  # 12 of 14


@pytest.mark.parametrize(("head", "mean"), [(10, 100), (9, 0)])
def test_a_shift_of_one_pixel_is_a_tenth_of_a_head_of_ten_but_not_of_nine(head: float, mean: float) -> None:
    someone = person(MPII, head=head)
    figures = pckh([someone], someone.keypoints[None] + [1, 0], MPII).metrics
    assert figures["PCKh@0.1 mean"] == mean
    assert figures["PCKh@0.5 mean"] == 100


def test_swapping_left_and_right_keeps_head_and_neck_only() -> None:
    someone = person(MPII, head=10)  # neighbours are 14 pixels apart
    figures = pckh([someone], someone.keypoints[None][:, MPII.swaps], MPII).metrics
    assert figures["PCKh@0.5 head"] == 100
    assert {figures[f"PCKh@0.5 {group}"] for group in GROUPS if group != "head"} == {0}
    assert figures["PCKh@0.5 mean"] == 14.29  # head_top and neck of 14


def test_a_group_is_the_mean_of_its_sides_but_the_mean_counts_joints() -> None:
    both, left_only = person(LSP, head=10), person(LSP, head=10, unlabelled=["right_elbow"], image=2)
    found = np.stack([both.keypoints, left_only.keypoints])
    found[1, LSP.joints.index("left_elbow")] += 100
    figures = pckh([both, left_only], found, LSP).metrics
    assert figures["PCKh@0.5 elbow"] == 75  # left 1 of 2, right 1 of 1
    assert figures["PCKh@0.5 mean"] == 96.3  # 26 of 27
    assert figures["PCKh people"] == 2


def test_without_head_rectangles_the_labels_of_neck_and_head_give_the_length_and_the_figures_say_so() -> None:
    # neck and head_top are neighbours in LSP's order: 14.14 pixels apart, half of it is 7.07
    near, without = person(LSP), person(LSP, unlabelled=["head_top"], image=2)
    found = np.stack([near.keypoints, without.keypoints])
    found[0, LSP.joints.index("left_knee"), 0] += 7
    found[0, LSP.joints.index("right_knee"), 0] += 7.1
    found[1] += 1000  # has no head length, so does not count
    figures = pckh([near, without], found, LSP)
    assert figures.metrics["PCKh@0.5 knee"] == 50
    assert figures.metrics["PCKh people"] == 1
    assert figures.notes == [FROM_JOINTS]
    assert pckh([person(LSP, head=10)], near.keypoints[None], LSP).notes == []


def test_where_no_head_has_a_length_there_is_no_figure() -> None:
    someone = person(LSP, unlabelled=["neck"])
    assert pckh([someone], someone.keypoints[None], LSP).metrics == {}


def test_a_head_whose_ends_are_labelled_in_one_place_has_no_length() -> None:
    someone = person(LSP)
    someone.keypoints[LSP.joints.index("head_top")] = someone.keypoints[LSP.joints.index("neck")]
    assert pckh([someone], someone.keypoints[None], LSP).metrics == {}
