"""Calibrated keypoint scores: a raw score is what the network believes of a place, a calibrated one what was measured.

A raw score is an expected OKS (`model.codec`); the map gives the mean OKS that joints of that score had on labelled
people, and never falls: isotonic regression (Zadrozny and Elkan, KDD 2002). There is one map per kind of joint, left
and right together, for OKS is far stricter with eyes than with hips. What it is worth is the expected calibration
error (Naeini et al., AAAI 2015), measured on pictures that the map was not fitted on.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import isotonic_regression

from model.card import Calibration
from model.codec import HeatmapCodec
from model.skeletons import Skeleton
from training.evaluation import Predictions
from training.oks import joint_oks
from training.people import Person

BINS = 15  # of the calibration error
STEPS = 20  # of the map: raw scores 0, 0.05 ... 1
GROUPS, GROUP_SIZE = 20, 50  # joints of like score are averaged first: at most this many groups, none smaller
LEAST = 200  # labelled joints; with fewer, scores stay as they are

Table = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class ScoredJoints:
    """Labelled joints, their raw scores and what they turned out to be worth.

    Attributes:
        raw, oks: (M,) float64 in 0..1.
        joint: (M,) int64 index in the skeleton.
        picture: (M,) ids of their pictures.
    """

    raw: np.ndarray
    oks: np.ndarray
    joint: np.ndarray
    picture: np.ndarray

    @classmethod
    def of(cls, people: Sequence[Person], found: Predictions, skeleton: Skeleton) -> "ScoredJoints":
        """The labelled joints of `people`; `found` must come from a codec without calibration."""
        truth = np.stack([person.keypoints for person in people])
        labelled = np.stack([person.weights for person in people]) > 0
        areas = np.array([person.area for person in people])
        images = np.array([person.image for person in people])
        oks = joint_oks(found.keypoints, truth, areas, np.array(skeleton.sigmas))
        person, joint = np.nonzero(labelled)
        return cls(found.scores[labelled].astype(np.float64), oks[labelled], joint, images[person])

    def __len__(self) -> int:
        return len(self.raw)

    def subset(self, chosen: np.ndarray) -> "ScoredJoints":
        """Those where `chosen` (M,) bool is true."""
        return ScoredJoints(self.raw[chosen], self.oks[chosen], self.joint[chosen], self.picture[chosen])


@dataclass(frozen=True)
class Reliability:
    """Bins of equal width: `score` (B,) and `oks` (B,), the means of their joints, and `count` (B,) of them."""

    score: np.ndarray
    oks: np.ndarray
    count: np.ndarray

    @classmethod
    def of(cls, scores: np.ndarray, oks: np.ndarray, bins: int = BINS) -> "Reliability":
        """Only bins that hold a joint are kept."""
        place = np.minimum((scores * bins).astype(int), bins - 1)
        count = np.bincount(place, minlength=bins)
        held = count > 0
        means = [np.bincount(place, values, bins)[held] / count[held] for values in (scores, oks)]
        return cls(means[0], means[1], count[held])

    @property
    def error(self) -> float:
        """Expected calibration error in 0..1: mean distance of score and OKS, bins weighted by their joints."""
        return float((np.abs(self.score - self.oks) * self.count).sum() / self.count.sum())


def fit_table(joints: ScoredJoints, skeleton: Skeleton) -> Table:
    """`HeatmapCodec.calibration`; kinds of joints that are too rarely labelled get the map of all joints."""
    everything = _fit(joints.raw, joints.oks)
    kind = np.minimum(np.arange(len(skeleton)), skeleton.swaps)
    rows = {}
    for index in np.unique(kind):
        alike = kind[joints.joint] == index
        enough = alike.sum() >= 2 * GROUP_SIZE
        rows[index] = _fit(joints.raw[alike], joints.oks[alike]) if enough else everything
    return tuple(rows[index] for index in kind)


def _fit(raw: np.ndarray, oks: np.ndarray) -> tuple[float, ...]:
    """(STEPS + 1,) calibrated scores at 0 ... 1 of the isotonic map, through 0 and level at the upper end."""
    parts = np.array_split(np.argsort(raw, kind="stable"), max(2, min(GROUPS, len(raw) // GROUP_SIZE)))
    sizes = np.array([len(part) for part in parts])
    means = np.array([(raw[part].mean(), oks[part].mean()) for part in parts])
    fitted = isotonic_regression(means[:, 1], weights=sizes)
    # one knot for each run of groups that were made equal, so that the map rises on its way past them
    starts = fitted.blocks[:-1]
    knots = np.add.reduceat(means[:, 0] * sizes, starts) / np.add.reduceat(sizes, starts)
    # a raw 0 is worth nothing: joints out of sight are not labelled, so nothing was measured there
    knots, levels = np.concatenate([[-1e-9], knots]), np.concatenate([[0.0], fitted.x[starts]])
    values = np.interp(np.linspace(0, 1, STEPS + 1), knots, levels).clip(0, 1)
    return tuple(round(float(value), 4) for value in values)


def apply_table(table: Table, joints: ScoredJoints) -> np.ndarray:
    """(M,) float64 calibrated scores, exactly as `HeatmapCodec.decode` gives them."""
    codec = HeatmapCodec((4, 4), 1.0, calibration=table)
    everyone = torch.from_numpy(joints.raw)[:, None].expand(-1, len(table))
    return np.asarray(codec.calibrate(everyone).numpy()[np.arange(len(joints)), joints.joint])


def cross_validated(joints: ScoredJoints, skeleton: Skeleton, seed: int = 0) -> np.ndarray:
    """(M,) calibrated scores, each by a map fitted on the half of the pictures that its own is not in."""
    names = np.unique(joints.picture)
    first = np.random.default_rng(seed).permutation(names)[: len(names) // 2]
    in_first = np.isin(joints.picture, first)
    scores = np.empty(len(joints))
    for half in (in_first, ~in_first):
        scores[half] = apply_table(fit_table(joints.subset(~half), skeleton), joints.subset(half))
    return scores


def fit_calibration(joints: ScoredJoints, skeleton: Skeleton, data: str, *, flip_test: bool) -> Calibration | None:
    """The map for a package's card; None where labels are too few, or where it does not lower the error.

    Args:
        data: name of the set that the joints are from.
    """
    pictures = len(np.unique(joints.picture))
    if len(joints) < LEAST or pictures < 2:
        return None
    before = Reliability.of(joints.raw, joints.oks).error
    after = Reliability.of(cross_validated(joints, skeleton), joints.oks).error
    if after >= before:
        return None
    table = fit_table(joints, skeleton)
    return Calibration(
        method="isotonic", table={joint: list(row) for joint, row in zip(skeleton.joints, table, strict=True)},
        data=data, flip_test=flip_test, pictures=pictures, joints=len(joints), bins=BINS,
        error_before=round(before, 4), error_after=round(after, 4),
    )  # fmt: skip
