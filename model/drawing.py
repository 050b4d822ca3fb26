"""The annotated picture: boxes, skeletons and scores, anti-aliased, in sizes that go with the person's."""

from collections.abc import Collection
from typing import Protocol

import cv2
import numpy as np
import numpy.typing as npt

from model.skeletons import Skeleton

Picture = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

FRACTION_BITS = 4  # cv2 takes sub-pixel places as integers with this many binary digits after the point
OUTLINE, WHITE = (24, 24, 28), (255, 255, 255)
FONT = cv2.FONT_HERSHEY_SIMPLEX


class People(Protocol):
    """What is drawn: boxes (N, 4) xyxy and keypoints (N, K, 2) in picture pixels, scores (N, K) and (N,) in 0..1."""

    @property
    def boxes(self) -> Floats: ...
    @property
    def keypoints(self) -> Floats: ...
    @property
    def keypoint_scores(self) -> Floats: ...
    @property
    def scores(self) -> Floats: ...


def draw(
    picture: Picture, people: People, skeleton: Skeleton, parts: Collection[str], keypoint_score: float
) -> Picture:
    """A copy of `picture` (H, W, 3) uint8 RGB with its people drawn on it.

    Args:
        parts: of `box`, `skeleton`, `score`.
        keypoint_score: joints scored lower are left out, and the links that end at them.
    """
    canvas = picture.copy()
    order = np.argsort(people.boxes[:, 3])  # nearer people, whose boxes reach lower, over those behind them
    for i in order:
        size = _stroke(people.boxes[i], picture)
        if "box" in parts:
            _draw_box(canvas, people.boxes[i], size)
        if "skeleton" in parts:
            _draw_skeleton(canvas, people.keypoints[i], people.keypoint_scores[i] >= keypoint_score, skeleton, size)
    if "score" in parts:
        for i in order:
            _draw_label(canvas, people.boxes[i], f"{people.scores[i]:.2f}", _stroke(people.boxes[i], picture))
    return canvas


def _stroke(box: np.ndarray, picture: Picture) -> float:
    """Width of a link in pixels: about 1/100 of the person's height, within bounds set by the picture."""
    longest = max(picture.shape[:2])
    return float(np.clip(max(box[3] - box[1], box[2] - box[0]) / 100, longest / 600 + 0.5, longest / 200 + 1))


def _fixed(point: np.ndarray) -> tuple[int, int]:
    """A point in cv2's fixed-point numbers."""
    x, y = np.clip(np.round(point * 2**FRACTION_BITS), -(2**30), 2**30)
    return int(x), int(y)


def _draw_skeleton(canvas: Picture, points: np.ndarray, shown: np.ndarray, skeleton: Skeleton, size: float) -> None:
    links = [
        (_fixed(points[a]), _fixed(points[b]), color)
        for (a, b), color in zip(skeleton.link_indices, skeleton.link_colors, strict=True)
        if shown[a] and shown[b]
    ]
    joints = [(_fixed(points[k]), color) for k, color in enumerate(skeleton.colors) if shown[k]]
    thick, rim = max(1, round(size)), max(1, round(size / 2.5))
    for start, end, _ in links:
        cv2.line(canvas, start, end, OUTLINE, thick + 2 * rim, cv2.LINE_AA, FRACTION_BITS)
    for start, end, color in links:
        cv2.line(canvas, start, end, color, thick, cv2.LINE_AA, FRACTION_BITS)
    radius = round(max(1.5, size) * 1.1 * 2**FRACTION_BITS)
    for centre, color in joints:
        cv2.circle(canvas, centre, radius + rim * 2**FRACTION_BITS, OUTLINE, -1, cv2.LINE_AA, FRACTION_BITS)
        cv2.circle(canvas, centre, radius, WHITE, -1, cv2.LINE_AA, FRACTION_BITS)
        cv2.circle(canvas, centre, round(radius * 0.7), color, -1, cv2.LINE_AA, FRACTION_BITS)


def _draw_box(canvas: Picture, box: np.ndarray, size: float) -> None:
    thick = max(1, round(size / 2.5))
    for color, width in ((OUTLINE, thick + 2), (WHITE, thick)):
        cv2.rectangle(canvas, _fixed(box[:2]), _fixed(box[2:]), color, width, cv2.LINE_AA, FRACTION_BITS)


def _draw_label(canvas: Picture, box: np.ndarray, text: str, size: float) -> None:
    """`text` in a plate on the box's upper left corner, kept inside the picture."""
    scale = max(0.35, size / 7)
    weight = max(1, round(scale * 1.6))
    (width, height), below = cv2.getTextSize(text, FONT, scale, weight)
    pad = max(2, round(height / 2.5))
    plate_width, plate_height = width + 2 * pad, height + below // 2 + 2 * pad
    rows, columns = canvas.shape[:2]
    left = int(np.clip(box[0], 0, max(0, columns - plate_width)))
    top = int(np.clip(box[1] - plate_height, 0, max(0, rows - plate_height)))
    cv2.rectangle(canvas, (left, top), (left + plate_width, top + plate_height), OUTLINE, -1)
    cv2.putText(canvas, text, (left + pad, top + pad + height), FONT, scale, WHITE, weight, cv2.LINE_AA)
