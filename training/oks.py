"""Object keypoint similarity (OKS, Lin et al., 2014): joint by joint, person by person, and suppression by it."""

import numpy as np

SUPPRESSION = 0.9  # HRNet's: a person more like a better scored one than this is the same person found twice


def joint_oks(found: np.ndarray, truth: np.ndarray, areas: np.ndarray, sigmas: np.ndarray) -> np.ndarray:
    """`exp(-d^2 / (2 s^2 k^2))` with k = 2 sigma and s^2 = area: how near each joint lies, in 0..1.

    Args:
        found, truth: (..., K, 2) in the same pixels.
        areas: (...) of the people, square pixels.
        sigmas: (K,) `Skeleton.sigmas`.

    Returns:
        (..., K) float64.
    """
    square = ((np.asarray(found, np.float64) - truth) ** 2).sum(-1)
    reach = (2 * sigmas) ** 2 * np.maximum(areas, np.spacing(1))[..., None]
    return np.asarray(np.exp(-square / (2 * reach)))


def person_oks(
    found: np.ndarray, truth: np.ndarray, labelled: np.ndarray, areas: np.ndarray, sigmas: np.ndarray
) -> np.ndarray:
    """(N,) float64: mean of `joint_oks` over the joints that are `labelled` (N, K) bool; NaN where none is."""
    total = np.where(labelled, joint_oks(found, truth, areas, sigmas), 0).sum(-1)
    count = labelled.sum(-1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def suppress(
    keypoints: np.ndarray, scores: np.ndarray, areas: np.ndarray, sigmas: np.ndarray, threshold: float = SUPPRESSION
) -> np.ndarray:
    """People of one picture that are not a better scored one over again, as HRNet does it.

    The similarity of two people counts all joints and takes the mean of their areas.

    Args:
        keypoints: (N, K, 2) picture pixels.
        scores: (N,) persons' scores.
        areas: (N,) square pixels; HRNet takes those of the padded crops.

    Returns:
        (M,) int64: the ones to keep, best first.
    """
    pair_areas = (areas[:, None] + areas) / 2
    alike = joint_oks(keypoints[:, None], keypoints[None], pair_areas, sigmas).mean(-1) > threshold  # (N, N)
    left = np.ones(len(scores), bool)
    kept = []
    for index in np.argsort(-scores, kind="stable"):
        if left[index]:
            kept.append(index)
            left &= ~alike[index]
    return np.array(kept, np.int64)
