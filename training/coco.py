"""People of COCO-format json: COCO keypoints itself and any set in its format, whatever its joints."""

from pathlib import Path
from typing import Any

import numpy as np

from training.config import ConfigError
from training.labels import LabelledSet, Person

BODY_SHARE = 0.53  # a person's share of the box, for sets without `area`


def read_coco(content: Any, path: Path, images: Path, set_index: int) -> LabelledSet:
    """People with at least one labelled joint; crowds (`iscrowd`) are left out.

    `confidence` per joint, where the set has it, becomes the weight.

    Args:
        content: the json of `path`.
        images: folder that file names are relative to.

    Raises:
        ConfigError: the json has no person keypoints, or an annotation does not fit the rest; it is named.
    """
    try:
        category = next(category for category in content["categories"] if category.get("keypoints"))
        joints = tuple(category["keypoints"])
        files = {image["id"]: images / image["file_name"] for image in content["images"]}
        annotations = content["annotations"]
    except StopIteration:
        raise ConfigError(f"{path} is not in COCO's keypoint format: none of its categories has keypoints") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} is not in COCO's keypoint format: {error!r} is missing") from None
    sizes = {
        files[image["id"]]: (image["width"], image["height"])
        for image in content["images"]
        if "width" in image and "height" in image
    }
    people = []
    for annotation in annotations:
        try:
            if annotation.get("category_id", category.get("id")) != category.get("id"):
                continue
            person = _person(annotation, len(joints), files, set_index)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            name = annotation.get("id", "without an id") if isinstance(annotation, dict) else annotation
            raise ConfigError(f"{path}: annotation {name} does not fit COCO's keypoint format: {error!r}") from None
        if person is not None:
            people.append(person)
    return LabelledSet(joints, people, sizes)


def _person(annotation: dict[str, Any], joints: int, files: dict[Any, Path], set_index: int) -> Person | None:
    if annotation.get("iscrowd") or not annotation.get("num_keypoints", 1):
        return None
    labels = np.array(annotation["keypoints"], np.float64).reshape(joints, 3)
    weights = np.asarray(annotation.get("confidence", np.ones(joints)), np.float64) * (labels[:, 2] > 0)
    if not weights.any():
        return None
    x, y, w, h = annotation["bbox"]
    return Person(
        set_index, files[annotation["image_id"]], np.array([x, y, x + w, y + h], np.float64), labels[:, :2], weights,
        annotation["id"], annotation["image_id"], float(annotation.get("area", BODY_SHARE * w * h)),
    )  # fmt: skip
