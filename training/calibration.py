"""Calibrated keypoint scores: a raw score is what the network believes of a place, a calibrated one what was measured.

A raw score is an expected OKS (`model.codec`); the map gives the mean OKS that joints of that score had on labelled
people, and never falls: isotonic regression (Zadrozny and Elkan, KDD 2002). Its worth is the expected calibration error
(Naeini et al., AAAI 2015), measured on pictures that the map was not fitted on.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import isotonic_regression

from model.codec import HeatmapCodec
from model.package import Calibration
from model.skeletons import Skeleton
from training.evaluation import Predictions
from training.oks import joint_oks
from training.people import Person

BINS = 15  # of the calibration error
GROUPS, GROUP_SIZE = 24, 50  # joints of like score are averaged first: at most this many groups, none smaller
LEAST = 200  # labelled joints; with fewer, scores stay as they are

Pairs = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class ScoredJoints:
    """Labelled joints, their raw scores and what they turned out to be worth.

    Attributes:
        raw, oks: (M,) float64 in 0..1.
        picture: (M,) ids of their pictures.
    """

    raw: np.ndarray
    oks: np.ndarray
    picture: np.ndarray

    @classmethod
    def of(cls, people: Sequence[Person], found: Predictions, skeleton: Skeleton) -> "ScoredJoints":
        """The labelled joints of `people`; `found` must come from a codec without calibration."""
        truth = np.stack([person.keypoints for person in people])
        labelled = np.stack([person.weights for person in people]) > 0
        areas = np.array([person.area for person in people])
        images = np.array([person.image for person in people])
        oks = joint_oks(found.keypoints, truth, areas, np.array(skeleton.sigmas))
        pictures = np.broadcast_to(images[:, None], labelled.shape)
        return cls(found.scores[labelled].astype(np.float64), oks[labelled], pictures[labelled])

    def __len__(self) -> int:
        return len(self.raw)

    def subset(self, chosen: np.ndarray) -> "ScoredJoints":
        """Those where `chosen` (M,) bool is true."""
        return ScoredJoints(self.raw[chosen], self.oks[chosen], self.picture[chosen])


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


def fit_pairs(joints: ScoredJoints) -> Pairs:
    """The isotonic map as pairs (raw score, OKS) that rise in both; at least two."""
    groups = max(2, min(GROUPS, len(joints) // GROUP_SIZE))
    parts = np.array_split(np.argsort(joints.raw, kind="stable"), groups)
    raw, oks, sizes = (np.array([f(part) for part in parts]) for f in (
        lambda part: joints.raw[part].mean(), lambda part: joints.oks[part].mean(), len,
    ))  # fmt: skip
    fitted = isotonic_regression(oks, weights=sizes)
    pairs: list[tuple[float, float]] = []
    for start, end in zip(fitted.blocks[:-1], fitted.blocks[1:], strict=True):
        pair = float(np.average(raw[start:end], weights=sizes[start:end])), float(fitted.x[start])
        if not pairs or pair[0] > pairs[-1][0]:
            pairs.append((round(pair[0], 6), round(min(max(pair[1], 0.0), 1.0), 6)))
    if len(pairs) == 1:  # scores say nothing about what joints are worth: every joint gets the mean
        return (0.0, pairs[0][1]), (1.0, pairs[0][1])
    return tuple(pairs)


def apply_pairs(pairs: Pairs, scores: np.ndarray) -> np.ndarray:
    """Calibrated scores of the same shape, exactly as `HeatmapCodec.decode` gives them."""
    codec = HeatmapCodec((4, 4), 1.0, calibration=pairs)
    return codec.calibrate(torch.from_numpy(np.asarray(scores))).numpy()


def cross_validated(joints: ScoredJoints, seed: int = 0) -> np.ndarray:
    """(M,) calibrated scores, each by a map fitted on the half of the pictures that its own is not in."""
    names = np.unique(joints.picture)
    first = np.random.default_rng(seed).permutation(names)[: len(names) // 2]
    in_first = np.isin(joints.picture, first)
    scores = np.empty(len(joints))
    for half in (in_first, ~in_first):
        scores[half] = apply_pairs(fit_pairs(joints.subset(~half)), joints.raw[half])
    return scores


def fit_calibration(joints: ScoredJoints, data: str) -> Calibration | None:
    """The map for a package's card; None where labels are too few, or where it does not lower the error.

    Args:
        data: name of the set that the joints are from.
    """
    pictures = len(np.unique(joints.picture))
    if len(joints) < LEAST or pictures < 2:
        return None
    before = Reliability.of(joints.raw, joints.oks).error
    after = Reliability.of(cross_validated(joints), joints.oks).error
    if after >= before:
        return None
    return Calibration(
        method="isotonic", pairs=list(fit_pairs(joints)), data=data, pictures=pictures, joints=len(joints), bins=BINS,
        error_before=round(before, 4), error_after=round(after, 4),
    )  # fmt: skip
