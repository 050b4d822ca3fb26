"""`pose data check`: what a set holds, pictures that cannot be read, and labels that a person should look at.

Suspicion is geometry, not judgement: a finding says which annotation to open, and is often a true label of a rare
pose. Lengths are compared as the body heights they stand for (Drillis and Contini's share of each limb), because
foreshortening only ever shortens a limb: one that stands for a far taller body than all others is likely misplaced.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from model.skeletons import mirror_name
from training.config import ConfigError
from training.crops import PackedCrop
from training.labels import LabelledSet, Person
from training.packs import joint_counts

SHARES = {
    ("shoulder", "elbow"): 0.19,
    ("elbow", "wrist"): 0.15,
    ("hip", "knee"): 0.25,
    ("knee", "ankle"): 0.25,
    ("shoulder", "hip"): 0.29,
}  # fmt: skip  (length of a limb over the body's height)
TOO_LONG = 2.5  # times the height that any other limb stands for
UNLIKE = 4.0  # times as long as its mirror image, and then also
UNLIKE_OTHERS = 1.5  # times what the typical other limb stands for
FAR = 0.3  # of the box's longer side: a joint further outside the box
EDGE = 1.0  # pixels: a joint further outside the picture
TWISTED = 0.3  # of the torso's length: shoulders and hips (or eyes) at least this wide the other way round
ORIENTATION = 274  # EXIF's tag; from 5 on the picture lies on its side
SAME = 0.04  # of the box's longer side: two people whose joints lie closer on average are one


@dataclass(frozen=True)
class Finding:
    """One thing to look at: `kind` is a key of the counts, `text` says what was seen."""

    kind: str
    annotation: int | None
    picture: str
    text: str


@dataclass(frozen=True)
class Report:
    """What `check_set` found.

    Attributes:
        joints: how many people have each joint labelled.
        broken: pictures that are missing or cannot be decoded, with the reason.
    """

    people: int
    pictures: int
    joints: dict[str, int]
    broken: dict[str, str]
    findings: list[Finding]

    def as_json(self) -> dict[str, Any]:
        """The report as plain values."""
        return {**asdict(self), "suspicions": self.suspicions}

    @property
    def suspicions(self) -> dict[str, int]:
        """How many findings there are of each kind."""
        return dict(Counter(finding.kind for finding in self.findings).most_common())


def check_set(labelled: LabelledSet, tick: Callable[[int, int], object] = lambda done, total: None) -> Report:  # noqa: ARG005
    """Decode every picture (of a pack: every crop) of a set and look through its labels.

    Args:
        tick: called with the number of pictures done and of all.
    """
    pictures = sorted({person.picture for person in labelled.people})
    packed: dict[Path, list[PackedCrop]] = {}
    for person in labelled.people:
        if person.packed is not None:
            packed.setdefault(person.picture, []).append(person.packed)
    broken: dict[str, str] = {}
    sizes: dict[Path, tuple[int, int]] = {}
    with ThreadPoolExecutor(4) as pool:
        results = pool.map(lambda path: _open(path, packed.get(path, [])), pictures)
        for done, (path, result) in enumerate(zip(pictures, results, strict=True), 1):
            if isinstance(result, str):
                broken[str(path)] = result
            elif result is not None:
                sizes[path] = result
            tick(done, len(pictures))
    findings = [*_wrong_sizes(labelled, sizes), *_duplicates(labelled)]
    for person in labelled.people:
        findings += _look_at(person, labelled.joints, sizes.get(person.picture))
    return Report(len(labelled.people), len(pictures), joint_counts(labelled), broken, findings)


def _open(path: Path, packed: list[PackedCrop]) -> tuple[int, int] | str | None:
    """(width, height) of a picture as training sees it, or why it cannot be read; None for crops that all can."""
    if packed:
        try:
            return None if all(crop.pixels.size for crop in packed) else "empty"
        except ConfigError as error:
            return str(error)
    try:
        with Image.open(path) as picture:  # unlike OpenCV, PIL says when a picture ends early
            picture.load()
            turned = picture.getexif().get(ORIENTATION, 1) >= 5
            size = picture.height if turned else picture.width, picture.width if turned else picture.height
    except FileNotFoundError:
        return "missing"
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return str(error).replace(str(path), path.name)
    return size if cv2.haveImageReader(str(path)) else "OpenCV, which training reads with, does not know the format"


def _wrong_sizes(labelled: LabelledSet, sizes: dict[Path, tuple[int, int]]) -> Iterator[Finding]:
    for path, size in sizes.items():
        claimed = tuple(labelled.sizes.get(path, size))
        if claimed != size:
            turned = " (turned by its EXIF orientation?)" if claimed == size[::-1] else ""
            text = f"is {size[0]}x{size[1]}, the labels say {claimed[0]}x{claimed[1]}{turned}"
            yield Finding("picture of another size", None, str(path), text)


def _duplicates(labelled: LabelledSet) -> Iterator[Finding]:
    """People labelled twice: the joints both have lie at the same places."""
    by_picture: dict[Path, list[Person]] = {}
    for person in labelled.people:
        by_picture.setdefault(person.picture, []).append(person)
    for people in by_picture.values():
        for i, first in enumerate(people):
            for second in people[i + 1 :]:
                both = (first.weights > 0) & (second.weights > 0)
                if both.sum() < 3:
                    continue
                distance = np.linalg.norm(first.keypoints[both] - second.keypoints[both], axis=1).mean()
                if distance < SAME * min(_side(first), _side(second)):
                    text = f"is the same person as annotation {first.annotation}"
                    yield Finding("duplicate", second.annotation, str(second.picture), text)


def _look_at(person: Person, joints: tuple[str, ...], size: tuple[int, int] | None) -> Iterator[Finding]:
    """Findings of one person; `size` is the picture's (width, height) where it is known."""
    places = {
        joint: point for joint, point, weight in zip(joints, person.keypoints, person.weights, strict=True) if weight
    }

    def found(kind: str, text: str) -> Finding:
        return Finding(kind, person.annotation, str(person.picture), text)

    x1, y1, x2, y2 = person.box
    if min(x2 - x1, y2 - y1) < 1:
        yield found("empty box", f"box of {x2 - x1:.1f}x{y2 - y1:.1f} pixels")
        return
    if size is not None:
        limits = np.array(size) - 1 + EDGE
        outside = [joint for joint, p in places.items() if (p < -EDGE).any() or (p > limits).any()]
        if outside:
            yield found("joint outside the picture", ", ".join(outside))
    far = [joint for joint, p in places.items() if _outside(p, person.box) > FAR * _side(person)]
    if far:
        yield found("joint far outside the box", ", ".join(far))
    spots = Counter(tuple(np.round(point, 1)) for point in places.values())
    spot, count = spots.most_common(1)[0]
    if count > 2:
        yield found("joints on one spot", f"{count} joints at {spot[0]:g}, {spot[1]:g}")
    for kind, text in (*_limbs(places), *_crossings(places)):
        yield found(kind, text)


def _side(person: Person) -> float:
    return float(max(person.box[2] - person.box[0], person.box[3] - person.box[1]))


def _outside(point: np.ndarray, box: np.ndarray) -> float:
    return float(np.linalg.norm(np.maximum(0, np.maximum(box[:2] - point, point - box[2:]))))


def _limbs(places: dict[str, np.ndarray]) -> Iterator[tuple[str, str]]:
    """Limbs that are too long for the rest of the body, or for their mirror image."""
    heights = {
        (f"{side}_{a}", f"{side}_{b}"): float(np.linalg.norm(places[f"{side}_{a}"] - places[f"{side}_{b}"])) / share
        for side in ("left", "right")
        for (a, b), share in SHARES.items()
        if f"{side}_{a}" in places and f"{side}_{b}" in places
    }
    for limb, height in heights.items():
        mirrored = (mirror_name(limb[0]), mirror_name(limb[1]))
        others = [value for other, value in heights.items() if other != limb]
        apart = [value for other, value in heights.items() if not set(other) & set(limb)]
        name = f"{limb[0]} to {limb[1]}"
        if len(apart) >= 3 and height > TOO_LONG * max(apart) > 0:
            yield "limb too long", f"{name} is {height / max(apart):.1f} times too long for the rest of the body"
        elif (
            len(others) >= 4
            and height > UNLIKE * heights.get(mirrored, height)
            and height > UNLIKE_OTHERS * float(np.median(others))
        ):
            yield "limbs unlike", f"{name} is {height / max(heights[mirrored], 1e-9):.1f} times as long as its mirror"


def _crossings(places: dict[str, np.ndarray]) -> Iterator[tuple[str, str]]:
    """Left and right that do not agree between two parts of the body, seen across the torso."""
    needed = [f"{side}_{part}" for part in ("shoulder", "hip") for side in ("left", "right")]
    if any(joint not in places for joint in needed):
        return
    torso = (places[needed[0]] + places[needed[1]] - places[needed[2]] - places[needed[3]]) / 2
    length = float(np.linalg.norm(torso))
    if length < 4:
        return
    across = np.array([-torso[1], torso[0]]) / length**2  # in torso lengths

    def width(part: str) -> float:
        left, right = places.get(f"left_{part}"), places.get(f"right_{part}")
        return 0.0 if left is None or right is None else float((left - right) @ across)

    shoulders, hips = width("shoulder"), width("hip")
    if shoulders * hips < 0 and min(abs(shoulders), abs(hips)) > TWISTED / 2 and abs(shoulders - hips) > 2 * TWISTED:
        yield "left and right swapped", "shoulders and hips are the other way round"
        return
    for parts in (("elbow", "wrist"), ("knee", "ankle")):
        widths = [width(part) for part in parts]
        base = shoulders if parts[0] == "elbow" else hips
        if all(value * base < 0 and abs(value) > 2 * TWISTED for value in widths) and abs(base) > TWISTED:
            yield "left and right swapped", f"{parts[0]}s and {parts[1]}s lie on the other side of the body"
    for part in ("eye", "ear"):
        if width(part) * shoulders < 0 and abs(width(part)) > TWISTED / 3 and abs(shoulders) > 2 * TWISTED:
            yield "left and right swapped", f"{part}s and shoulders are the other way round"
            return
