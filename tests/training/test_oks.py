"""OKS against values worked out by hand."""

from math import exp

import numpy as np
import pytest

from training.oks import joint_oks, person_oks, suppress

NOSE, HIP = 0.026, 0.107
SIGMAS = np.array([NOSE, HIP])
RIGHT = np.array([1.0, 0.0])


def test_a_pixel_weighs_by_the_joint_and_the_size_of_the_person() -> None:
    # s^2 = 10,000; nose: k = 0.052, s^2 k^2 = 27.04, exp(-1 / 54.08) = 0.98168
    # hip: k = 0.214, s^2 k^2 = 457.96, exp(-1 / 915.92) = 0.99891; their mean is 0.99029
    truth = np.array([[[10.0, 10.0], [20.0, 50.0]]])
    found = truth + RIGHT
    areas = np.array([10_000.0])
    assert joint_oks(found, truth, areas, SIGMAS)[0] == pytest.approx([0.98168, 0.99891], abs=1e-5)
    assert person_oks(found, truth, np.array([[True, True]]), areas, SIGMAS) == pytest.approx([0.99029], abs=1e-5)
    # a quarter of the area: the exponent is four times as large
    quarter = person_oks(found, truth, np.array([[True, True]]), areas / 4, SIGMAS)
    assert quarter == pytest.approx([(exp(-4 / 54.08) + exp(-4 / 915.92)) / 2])


def test_unlabelled_joints_do_not_count_and_nobody_labelled_has_no_figure() -> None:
    truth = np.zeros((2, 2, 2))
    found = np.array([[[0, 0], [500, 0]], [[0, 0], [0, 0]]])
    labelled = np.array([[True, False], [False, False]])
    figures = person_oks(found, truth, labelled, np.array([100.0, 100.0]), SIGMAS)
    assert figures[0] == 1
    assert np.isnan(figures[1])


@pytest.mark.parametrize(
    ("shift", "kept"),
    [
        # both joints moved by d, areas 10,000: the mean of exp(-d^2 / 54.08) and exp(-d^2 / 915.92)
        pytest.param(2.5, [1, 2], id="d^2 = 6.25 gives 0.942: the same person"),
        pytest.param(3.5, [1, 0, 2], id="d^2 = 12.25 gives 0.892: another one"),
    ],
)
def test_a_person_found_twice_is_kept_once_by_the_better_score(shift: float, kept: list[int]) -> None:
    first = np.array([[100.0, 100.0], [120.0, 180.0]])
    keypoints = np.stack([first, first + shift * RIGHT, first + 300 * RIGHT])
    chosen = suppress(keypoints, np.array([0.8, 0.9, 0.1]), np.full(3, 10_000.0), SIGMAS)
    assert chosen.tolist() == kept


def test_suppression_goes_by_the_mean_of_the_areas() -> None:
    # d^2 = 12.25 and areas 10,000 and 30,000, mean 20,000: (exp(-12.25 / 108.16) + exp(-12.25 / 1831.84)) / 2 = 0.943
    first = np.array([[100.0, 100.0], [120.0, 180.0]])
    keypoints = np.stack([first, first + 3.5 * RIGHT])
    assert suppress(keypoints, np.array([0.9, 0.8]), np.array([1e4, 3e4]), SIGMAS).tolist() == [0]


def test_a_suppressed_person_suppresses_nobody() -> None:
    first = np.array([[100.0, 100.0], [120.0, 180.0]])
    keypoints = np.stack([first, first + 2.5 * RIGHT, first + 5 * RIGHT])  # 0 and 2 are too far apart, 1 is between
    assert suppress(keypoints, np.array([0.9, 0.8, 0.7]), np.full(3, 1e4), SIGMAS).tolist() == [0, 2]


def test_nobody_stays_nobody() -> None:
    assert suppress(np.zeros((0, 2, 2)), np.zeros(0), np.zeros(0), SIGMAS).shape == (0,)
