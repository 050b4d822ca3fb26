"""Bootstrap confidence intervals (Efron, 1979): pictures are drawn anew, with return; the matching is not run again."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools.cocoeval import COCOeval

TIMES, LEVEL, SEED = 1000, 95.0, 0

Interval = tuple[float, float]


def draw_pictures(pictures: int, times: int = TIMES, seed: int = SEED) -> np.ndarray:
    """(times, pictures) float64: how often each picture is in each resample; every row sums to `pictures`."""
    chances = np.full(pictures, 1 / pictures)
    return np.random.default_rng(seed).multinomial(pictures, chances, size=times).astype(np.float64)


def interval(values: np.ndarray) -> Interval:
    """The middle 95 % of the resamples' figures (those that are numbers), in the figures' unit."""
    low, high = np.nanpercentile(values, [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
    return round(float(low), 2), round(float(high), 2)


def share_interval(images: Sequence[int], right: np.ndarray, counted: np.ndarray) -> Interval:
    """Of a PCK in percent: joints `right` among those `counted`, both (N, K) bool, of people in `images` (N,)."""
    names, place = np.unique(images, return_inverse=True)
    hits = np.bincount(place, (right & counted).sum(1), len(names))
    joints = np.bincount(place, counted.sum(1), len(names))
    drawn = draw_pictures(len(names))
    with np.errstate(invalid="ignore"):
        return interval(100 * (drawn @ hits) / (drawn @ joints))


@dataclass(frozen=True)
class Matches:
    """What pycocotools matched, over all sizes of people: detections by falling score.

    Attributes:
        right, wrong: (T, D) bool per OKS threshold; neither where a detection is to be ignored.
        picture: (D,) int64 number of a detection's picture.
        people: (I,) people of each picture that count.
        recalls: (R,) recalls at which precision is read.
    """

    right: np.ndarray
    wrong: np.ndarray
    picture: np.ndarray
    people: np.ndarray
    recalls: np.ndarray

    @classmethod
    def of(cls, evaluation: COCOeval) -> "Matches":
        """From an evaluation that has run `evaluate`, for one category."""
        count = len(evaluation.params.imgIds)
        one = [(i, entry) for i, entry in enumerate(evaluation.evalImgs[:count]) if entry is not None]  # all sizes
        people = np.zeros(count)
        for i, entry in one:
            people[i] = np.count_nonzero(np.asarray(entry["gtIgnore"]) == 0)
        thresholds = len(evaluation.params.iouThrs)
        empty = np.zeros((thresholds, 0), bool)
        order = np.argsort(-np.concatenate([[], *(entry["dtScores"] for _, entry in one)]), kind="mergesort")
        matched = np.concatenate([empty, *(np.asarray(entry["dtMatches"]) > 0 for _, entry in one)], 1)[:, order]
        ignored = np.concatenate([empty, *(np.asarray(entry["dtIgnore"], bool) for _, entry in one)], 1)[:, order]
        picture = np.concatenate([[], *(np.full(len(entry["dtScores"]), i) for i, entry in one)])[order]
        return cls(matched & ~ignored, ~matched & ~ignored, picture.astype(np.int64), people, evaluation.params.recThrs)

    def figures(self, drawn: np.ndarray) -> tuple[np.ndarray, float]:
        """Precision per threshold (T,) and AR, both in percent, with picture i counted `drawn[i]` times.

        A detection that counts n times steps as far as n detections of one score, so the curve's corners are the same.
        """
        weights = drawn[self.picture]
        people = drawn @ self.people
        if people == 0:
            return np.full(len(self.right), np.nan), np.nan
        if not len(self.picture):
            return np.zeros(len(self.right)), 0.0
        right, wrong = np.cumsum(self.right * weights, 1), np.cumsum(self.wrong * weights, 1)
        recall, precision = right / people, right / (right + wrong + np.spacing(1))
        envelope = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
        envelope = np.concatenate([envelope, np.zeros((len(envelope), 1))], 1)  # recalls never reached
        read = [np.take(e, np.searchsorted(r, self.recalls)).mean() for e, r in zip(envelope, recall, strict=True)]
        return 100 * np.array(read), 100 * float(recall[:, -1].mean())

    def intervals(self, times: int = TIMES) -> dict[str, Interval]:
        """Of AP, AP50, AP75 and AR, in percent."""
        results = [self.figures(drawn) for drawn in draw_pictures(len(self.people), times)]
        precision = np.stack([result[0] for result in results])  # (times, T), thresholds .50, .55 ... .95
        return {
            "AP": interval(precision.mean(1)),
            "AP50": interval(precision[:, 0]),
            "AP75": interval(precision[:, 5]),
            "AR": interval(np.array([result[1] for result in results])),
        }
