"""Labelled people, in the joints of the set they come from, and how they come onto the skeleton that is trained."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from model.skeletons import map_joints
from training.config import ConfigError
from training.crops import PackedCrop


@dataclass(frozen=True)
class Person:
    """One labelled person.

    Attributes:
        set_index: which data set it came from.
        picture: path of the picture file.
        box: (4,) float64 xyxy, picture pixels.
        keypoints: (K, 2) float64, picture pixels.
        weights: (K,) float64 in 0..1: 0 where the joint is not labelled, else how sure the label is.
        annotation: id in the set's json; `image` is the picture's.
        area: of the annotation, square pixels.
        head_size: MPII's reference length for PCKh, picture pixels (0.6 x the diagonal of the head's rectangle); NaN
            where the set has none.
        packed: where a packed set holds the person's surroundings; None where only the picture does.
    """

    set_index: int
    picture: Path
    box: np.ndarray
    keypoints: np.ndarray
    weights: np.ndarray
    annotation: int
    image: int
    area: float
    head_size: float = math.nan
    packed: PackedCrop | None = None


@dataclass(frozen=True)
class LabelledSet:
    """People whose keypoints are in the order of `joints`, the set's own.

    Attributes:
        sizes: (width, height) in pixels that the set claims for a picture, where it does.
    """

    joints: tuple[str, ...]
    people: list[Person]
    sizes: Mapping[Path, tuple[int, int]]


def read_json(path: Path) -> Any:
    """A json file's content.

    Raises:
        ConfigError: it is missing or damaged.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing: POSE_DATA must be the folder that holds the data sets") from None
    except ValueError as error:
        raise ConfigError(f"{path} is damaged: {error}") from None


def fill_blanks(people: Sequence[Person], extra: Mapping[str, Any], joints: tuple[str, ...]) -> list[Person]:
    """`people` with `extra` joints, `{annotation id: [[x, y, score], ...]}` for the first of `joints`, where they have
    no label of their own; the score becomes the weight.

    Raises:
        ConfigError: a person has more extra joints than the set has.
    """
    filled = []
    for person in people:
        more = np.array(extra.get(str(person.annotation), []), np.float64).reshape(-1, 3)
        if len(more) > len(joints):
            raise ConfigError(f"annotation {person.annotation} has {len(more)} extra joints, the set {len(joints)}")
        keypoints, weights = person.keypoints.copy(), person.weights.copy()
        blank = weights[: len(more)] == 0
        keypoints[: len(more)][blank] = more[blank, :2]
        weights[: len(more)][blank] = more[blank, 2]
        filled.append(replace(person, keypoints=keypoints, weights=weights))
    return filled


def onto_joints(
    labelled: LabelledSet, joints: tuple[str, ...], derive: Mapping[str, tuple[str, str]], name: str
) -> list[Person]:
    """The set's people with keypoints in the order of `joints`, matched by name.

    Joints the set lacks weigh nothing, but for those in `derive`: they lie in the middle of two joints it has, and
    weigh as much as the less sure of the two. People without any of the joints are left out.

    Args:
        name: the set's, for errors.

    Raises:
        ConfigError: a derived joint is labelled by the set or is none of `joints`, or is derived from an unknown one.
    """
    for joint, pair in derive.items():
        if joint not in joints:
            raise ConfigError(f"{name}: derive: no joint {joint!r} is trained; known: {', '.join(joints)}")
        if joint in labelled.joints:
            raise ConfigError(f"{name}: derive: the set labels {joint!r} itself; take it out of derive")
        for parent in pair:
            if parent not in labelled.joints:
                raise ConfigError(
                    f"{name}: derive: {joint!r} needs {parent!r}, which the set does not label; it labels "
                    f"{', '.join(labelled.joints)}"
                )
    source = map_joints(labelled.joints, joints)
    known = source >= 0
    middles = [
        (joints.index(joint), labelled.joints.index(a), labelled.joints.index(b)) for joint, (a, b) in derive.items()
    ]
    people = []
    for person in labelled.people:
        keypoints = np.where(known[:, None], person.keypoints[source], 0.0)
        weights = np.where(known, person.weights[source], 0.0)
        for place, a, b in middles:
            keypoints[place] = (person.keypoints[a] + person.keypoints[b]) / 2
            weights[place] = min(person.weights[a], person.weights[b])
        if weights.any():
            people.append(replace(person, keypoints=keypoints, weights=weights))
    return people
