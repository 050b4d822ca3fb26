"""People of COCO-format sets: labels mapped to one skeleton by joint name, and pictures cut once and kept in memory."""

import json
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from model.crop import PADDING, Region, cut
from model.skeletons import SKELETONS, map_joints
from training.config import ConfigError, DataSet

CONTEXT = 1.5  # what is kept around the padded box, so that rotated and shrunk crops still see the picture


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


def read_people(data: DataSet, root: Path, skeleton: str, set_index: int = 0) -> list[Person]:
    """All people of one set that have at least one labelled joint.

    Joints the set does not know get weight 0; `confidence` per joint, where the set has it, becomes the weight.

    Raises:
        ConfigError: a file is missing or the json has no person keypoints.
    """
    content = read_json(root / data.annotations)
    try:
        names = tuple(content["categories"][0]["keypoints"])
        files = {image["id"]: root / data.images / image["file_name"] for image in content["images"]}
        annotations = content["annotations"]
    except (KeyError, IndexError, TypeError) as error:
        raise ConfigError(f"{root / data.annotations} is not in COCO's keypoint format: {error!r} is missing") from None
    source = map_joints(names, SKELETONS[skeleton].joints)
    known = source >= 0
    extra = read_json(root / data.extra_joints) if data.extra_joints else {}
    people = []
    for annotation in annotations:
        if not annotation.get("num_keypoints") or annotation.get("iscrowd"):
            continue
        labels = np.array(annotation["keypoints"], np.float64).reshape(-1, 3)
        sure = np.asarray(annotation.get("confidence", np.ones(len(labels))), np.float64) * (labels[:, 2] > 0)
        keypoints = np.where(known[:, None], labels[source, :2], 0.0)
        weights = np.where(known, sure[source], 0.0)
        more = np.array(extra.get(str(annotation["id"]), []), np.float64).reshape(-1, 3)
        blank = weights[: len(more)] == 0
        keypoints[: len(more)][blank] = more[blank, :2]
        weights[: len(more)][blank] = more[blank, 2]
        x, y, w, h = annotation["bbox"]
        people.append(
            Person(
                set_index, files[annotation["image_id"]], np.array([x, y, x + w, y + h]), keypoints, weights,
                annotation["id"], annotation["image_id"], annotation["area"],
            )
        )  # fmt: skip
    return people


def read_json(path: Path) -> dict[str, Any]:
    """A json file's content.

    Raises:
        ConfigError: it is missing or damaged.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing: POSE_DATA must be the folder that holds the data sets") from None
    except ValueError as error:
        raise ConfigError(f"{path} is damaged: {error}") from None
    return content


def read_picture(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB.

    Raises:
        ConfigError: missing or broken.
    """
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    if picture is None:
        raise ConfigError(f"{path} is missing or no picture")
    return np.asarray(picture)


@dataclass(frozen=True)
class KeptCrop:
    """A person's surroundings: `pixels` (h, w, 3) uint8 RGB and the (2, 3) affine picture -> `pixels`."""

    pixels: np.ndarray
    affine: np.ndarray


def keep_crops(people: Sequence[Person], size: tuple[int, int], tick: Callable[[int], object] = int) -> list[KeptCrop]:
    """Decode every picture once and keep what crops of at most `size` (height, width) can need of it.

    Stored at the picture's own resolution unless `size` needs less. `tick` is called with the number of people done.
    """
    by_picture: dict[Path, list[int]] = {}
    for index, person in enumerate(people):
        by_picture.setdefault(person.picture, []).append(index)
    kept: list[KeptCrop | None] = [None] * len(people)

    def keep(item: tuple[Path, list[int]]) -> int:
        picture = read_picture(item[0])
        for index in item[1]:
            kept[index] = _keep(picture, people[index].box, size)
        return len(item[1])

    with ThreadPoolExecutor(4) as pool:
        for count in pool.map(keep, by_picture.items()):
            tick(count)
    return [crop for crop in kept if crop is not None]


def _keep(picture: np.ndarray, box: np.ndarray, size: tuple[int, int]) -> KeptCrop:
    region = Region.around(box, size, PADDING * CONTEXT)
    low = np.clip(np.floor(region.center - region.extent / 2), 0, None)
    high = np.minimum(np.ceil(region.center + region.extent / 2), [picture.shape[1] - 1, picture.shape[0] - 1])
    low = np.minimum(low, high - 1).clip(0)
    shrink = max(1.0, region.extent[1] / (size[0] * CONTEXT))
    width, height = np.maximum(2, np.round((high - low) / shrink)).astype(int) + 1
    scale = np.array([width - 1, height - 1]) / np.maximum(high - low, 1)
    affine = np.concatenate([np.diag(scale), (-low * scale)[:, None]], 1)
    return KeptCrop(cut(picture, affine, (int(height), int(width))), affine)
