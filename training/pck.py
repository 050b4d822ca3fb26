"""Shares of joints found near enough: PCK@0.2 of torso lengths and PCKh of head lengths.

PCK (Yang and Ramanan, 2013): a joint is right when it lies within 0.2 torso lengths of its label (left shoulder to
right hip). PCKh (Andriluka et al., CVPR 2014): within 0.5, or 0.1, head lengths. As in HRNet's evaluation of MPII, a
head length is 0.6 x the diagonal of the head's rectangle, a group's figure is the mean of its left and right, "head" is
the top of the head, and the mean counts every labelled joint but pelvis and thorax. (HRNet's "0.1" is read at 0.11.)
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from model.skeletons import Skeleton
from training.bootstrap import Interval, share_interval
from training.people import Person

GROUPS = {  # the order of the paper's Table 1
    "head": ("head_top",),
    **{part: (f"left_{part}", f"right_{part}") for part in ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")},
}
NOT_IN_MEAN = ("pelvis", "thorax")
HEAD_THRESHOLDS = (0.5, 0.1)
FROM_JOINTS = "no head rectangles: a head length is the distance from neck to head_top as labelled"


@dataclass(frozen=True)
class Figures:
    """Figures in percent, confidence intervals of the chief ones, and what else they depend on."""

    metrics: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, Interval] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __or__(self, other: "Figures") -> "Figures":
        return Figures(
            {**self.metrics, **other.metrics}, {**self.intervals, **other.intervals}, self.notes + other.notes
        )


def pck(people: Sequence[Person], keypoints: np.ndarray, skeleton: Skeleton, threshold: float = 0.2) -> Figures:
    """`PCK@0.2`, and how many `people` have the torso labelled that it takes; nothing where nobody has.

    Args:
        keypoints: (N, K, 2) found, picture pixels.
    """
    truth, labelled = _labels(people)
    torso = np.full(len(people), np.nan)
    for a, b in (("right_shoulder", "left_hip"), ("left_shoulder", "right_hip")):  # the latter where both are there
        torso = _lengths(truth, labelled, skeleton, a, b, torso)
    usable = labelled & ~np.isnan(torso)[:, None]
    if not usable.any():
        return Figures()
    right = np.linalg.norm(keypoints - truth, axis=2) <= threshold * torso[:, None]
    name = f"PCK@{threshold}"
    metrics = {name: _percent(right[usable]), f"{name} people": float((~np.isnan(torso)).sum())}
    return Figures(metrics, {name: share_interval([p.image for p in people], right, usable)})


def pckh(people: Sequence[Person], keypoints: np.ndarray, skeleton: Skeleton) -> Figures:
    """`PCKh@0.5 head`, `PCKh@0.5 shoulder` ... `PCKh@0.5 mean`, the same for 0.1; nothing where no head has a length.

    Args:
        keypoints: (N, K, 2) found, picture pixels.
    """
    truth, labelled = _labels(people)
    head = np.array([person.head_size for person in people])
    from_joints = _lengths(truth, labelled, skeleton, "neck", "head_top", np.full(len(people), np.nan))
    notes = [FROM_JOINTS] if (np.isnan(head) & ~np.isnan(from_joints)).any() else []
    head = np.where(np.isnan(head), from_joints, head)
    usable = labelled & ~np.isnan(head)[:, None]
    in_mean = usable & ~np.isin(skeleton.joints, NOT_IN_MEAN)
    if not in_mean.any():
        return Figures()
    distance = np.linalg.norm(keypoints - truth, axis=2) / head[:, None]
    metrics, intervals = {}, {}
    for threshold in HEAD_THRESHOLDS:
        right = distance <= threshold
        for group, joints in GROUPS.items():
            columns = [skeleton.joints.index(joint) for joint in joints if joint in skeleton.joints]
            shares = [_percent(right[usable[:, k], k]) for k in columns if usable[:, k].any()]
            if shares:
                metrics[f"PCKh@{threshold} {group}"] = round(sum(shares) / len(shares), 2)
        metrics[f"PCKh@{threshold} mean"] = _percent(right[in_mean])
        intervals[f"PCKh@{threshold} mean"] = share_interval([p.image for p in people], right, in_mean)
    metrics["PCKh people"] = float((~np.isnan(head)).sum())
    return Figures(metrics, intervals, notes)


def _labels(people: Sequence[Person]) -> tuple[np.ndarray, np.ndarray]:
    return np.stack([p.keypoints for p in people]), np.stack([p.weights for p in people]) > 0


def _lengths(
    truth: np.ndarray, labelled: np.ndarray, skeleton: Skeleton, a: str, b: str, otherwise: np.ndarray
) -> np.ndarray:
    """(N,) distance of two labelled joints, or what stands in `otherwise`; joints in one place measure nothing."""
    if a not in skeleton.joints or b not in skeleton.joints:
        return otherwise
    i, j = skeleton.joints.index(a), skeleton.joints.index(b)
    length = np.linalg.norm(truth[:, i] - truth[:, j], axis=1)
    return np.where(labelled[:, i] & labelled[:, j] & (length > 0), length, otherwise)


def _percent(right: np.ndarray) -> float:
    return round(100 * float(right.mean()), 2)
