"""Calibration: a known distortion is found and undone, and what it is worth is measured on other pictures."""

from pathlib import Path

import numpy as np
import pytest
import torch

from model.codec import HeatmapCodec
from model.skeletons import COCO
from training import calibration
from training.calibration import Reliability, ScoredJoints, apply_table, cross_validated, fit_calibration, fit_table
from training.evaluation import Predictions
from training.people import Person

NOSE, HIP = 0, 11


def joints(count: int = 4000, noise: float = 0.1) -> ScoredJoints:
    """Hips are worth the square of their score, noses half of it; ten joints a picture."""
    rng = np.random.default_rng(0)
    raw = rng.random(count)
    joint = np.where(np.arange(count) % 2, HIP + np.arange(count) % 4 // 2, NOSE)  # left and right hips
    worth = np.where(joint == NOSE, raw / 2, raw**2)
    oks = np.clip(worth + rng.normal(0, noise, count), 0, 1)
    return ScoredJoints(raw, oks, joint, np.arange(count) // 10)


def test_the_calibration_error_is_the_mean_gap_of_the_bins_by_their_joints() -> None:
    # two joints in the bin 0.2..0.4: scores 0.3, OKS 0.1 on average, gap 0.2; one at 0.9 with OKS 0.8, gap 0.1
    line = Reliability.of(np.array([0.25, 0.35, 0.9]), np.array([0.2, 0.0, 0.8]), bins=5)
    assert line.count.tolist() == [2, 1]
    assert line.score == pytest.approx([0.3, 0.9])
    assert line.oks == pytest.approx([0.1, 0.8])
    assert line.error == pytest.approx((2 * 0.2 + 1 * 0.1) / 3)
    assert Reliability.of(np.array([1.0]), np.array([1.0])).error == 0


def test_each_kind_of_joint_gets_its_own_map_and_sides_share_one() -> None:
    table = fit_table(joints(), COCO)
    steps = np.linspace(0, 1, calibration.STEPS + 1)
    assert np.abs(np.array(table[HIP]) - steps**2).max() < 0.1
    assert np.abs(np.array(table[NOSE]) - steps / 2).max() < 0.06
    assert table[HIP] == table[HIP + 1]
    everything = table[COCO.joints.index("left_knee")]  # never labelled: the map of all joints
    assert table[NOSE][-2] < everything[-2] < table[HIP][-2]


def test_maps_never_fall_and_nothing_is_worth_nothing() -> None:
    some = joints(noise=0.5)
    upside_down = ScoredJoints(some.raw, 1 - some.oks, some.joint, some.picture)  # the surer, the worse
    for one in (some, upside_down):
        for row in fit_table(one, COCO):
            assert row[0] == 0
            assert list(row) == sorted(row)
            assert 0 <= row[-1] <= 1


def test_the_error_after_is_that_of_pictures_that_the_map_has_not_seen() -> None:
    some = joints()
    scores = cross_validated(some, COCO)
    assert Reliability.of(scores, some.oks).error < 0.03
    # a joint's score must not depend on what its own picture turned out to be worth
    first = some.picture == 0
    other = ScoredJoints(some.raw, np.where(first, 1 - some.oks, some.oks), some.joint, some.picture)
    assert (cross_validated(other, COCO)[first] == scores[first]).all()
    assert (cross_validated(other, COCO)[~first] != scores[~first]).any()


def test_the_map_applied_here_is_the_one_that_is_served() -> None:
    some = joints(500)
    table = fit_table(some, COCO)
    served = HeatmapCodec((64, 48), 1.0, calibration=table).calibrate(torch.from_numpy(some.raw)[:, None].repeat(1, 17))
    assert apply_table(table, some) == pytest.approx(served.numpy()[np.arange(500), some.joint])


def test_the_card_says_what_calibration_is_worth() -> None:
    some = joints()
    found = fit_calibration(some, COCO, "a-set", flip_test=True)
    assert found is not None
    assert (found.data, found.pictures, found.joints, found.flip_test) == ("a-set", 400, 4000, True)
    assert found.error_before == pytest.approx(Reliability.of(some.raw, some.oks).error, abs=1e-4)
    assert found.error_before > 0.18  # E|x - x^2| = 1/6 for hips, E|x - x/2| = 1/4 for noses; before clipping
    assert found.error_after < 0.03
    assert found.rows(COCO) == fit_table(some, COCO)


@pytest.mark.parametrize(
    "some",
    [
        pytest.param(joints(150), id="too few joints"),
        pytest.param(ScoredJoints(*(getattr(joints(), n) for n in ("raw", "oks", "joint")), np.zeros(4000)), id="one"),
        pytest.param(ScoredJoints(joints().raw, joints().raw, joints().joint, joints().picture), id="nothing to gain"),
    ],
)
def test_without_a_gain_on_other_pictures_scores_stay_as_they_are(some: ScoredJoints) -> None:
    assert fit_calibration(some, COCO, "a-set", flip_test=True) is None


def test_labelled_joints_and_their_oks_are_taken_person_by_person() -> None:
    places = np.arange(34.0).reshape(17, 2)
    weights = np.zeros(17)
    weights[[NOSE, HIP]] = 1
    people = [Person(0, Path("a"), np.array([0.0, 0, 9, 9]), places, weights, i, 70 + i, 1e4) for i in (0, 1)]
    found = Predictions(np.stack([places, places + np.array([1, 0])]), np.stack([np.full(17, 0.3), np.full(17, 0.6)]))
    some = ScoredJoints.of(people, found, COCO)
    assert some.raw.tolist() == [0.3, 0.3, 0.6, 0.6]
    assert some.joint.tolist() == [NOSE, HIP] * 2
    assert some.picture.tolist() == [70, 70, 71, 71]
    assert some.oks == pytest.approx([1, 1, 0.98168, 0.99891], abs=1e-5)  # see test_oks.py
