"""People of MPII Human Pose (Andriluka et al., CVPR 2014), from the official `.mat` or from HRNet's json.

Both count pixels as MATLAB does, from 1; here the origin is the centre of the top-left pixel, so 1 is taken off. A
person's place is given as a centre and a scale in units of 200 pixels. HRNet (lib/dataset/mpii.py) moves the centre
down by 15 pixels per unit of scale, "to avoid cropping limbs", and takes 1.25 times the scale for its crop. The boxes
made here are squares of 200 pixels per unit of scale around that centre: `model.crop` pads by the same 1.25, so that
its square crop shows exactly the region that HRNet's does.

The `.mat` holds the labels of the official training pictures, of which HRNet's `train` and `valid` are two parts.
"""

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np

from model.skeletons import MPII
from training.coco import BODY_SHARE
from training.config import ConfigError
from training.labels import LabelledSet, Person

UNIT = 200.0  # pixels per unit of MPII's scale
LOWER = 15.0  # pixels per unit of scale that HRNet moves the centre down
HEAD_SHARE = 0.6  # of the head rectangle's diagonal: PCKh's reference length, as in MPII's evaluation code

log = logging.getLogger("pose.training")


def box_around(center: tuple[float, float], scale: float) -> np.ndarray:
    """(4,) float64 xyxy: the square whose padded crop is HRNet's, from MPII's 1-based `center` and `scale`."""
    x, y = center[0] - 1, center[1] + LOWER * scale - 1
    half = UNIT * scale / 2
    return np.array([x - half, y - half, x + half, y + half])


def read_hrnet(content: list[Any], path: Path, images: Path, set_index: int) -> LabelledSet:
    """People of HRNet's `train.json`, `valid.json` or `trainval.json`: a list of `image`, `center`, `scale`, `joints`,
    `joints_vis`.

    An annotation's id is its place in the list. Head sizes come from `gt_valid.mat` (MMPose: `mpii_gt_val.mat`) beside
    `valid.json` (`mpii_val.json`), where that file exists.

    Raises:
        ConfigError: an entry lacks something, or the head sizes are those of another list.
    """
    heads = _head_sizes(path, len(content))
    numbers: dict[str, int] = {}
    people = []
    for place, entry in enumerate(content):
        try:
            labels = np.array(entry["joints"], np.float64).reshape(len(MPII), 2) - 1
            weights = (np.array(entry["joints_vis"], np.float64).reshape(len(MPII)) > 0).astype(np.float64)
            center, scale, name = entry["center"], float(entry["scale"]), entry["image"]
            if scale <= 0 or not weights.any():
                continue
            box = box_around(center, scale)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ConfigError(f"{path}: entry {place} does not fit HRNet's MPII format: {error!r}") from None
        number = numbers.setdefault(name, len(numbers))
        people.append(_person(set_index, images / name, box, labels, weights, place, number, heads[place]))
    return LabelledSet(MPII.joints, people, {})


def read_mat(path: Path, images: Path, set_index: int) -> LabelledSet:
    """People of `mpii_human_pose_v1_u12_1.mat` with joints, a place and a scale, from its training pictures.

    An annotation's id is 1000 x the picture's number in `annolist` + the person's in `annorect`, both from 1.

    Raises:
        ConfigError: missing, no MATLAB file, or not MPII's.
    """
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        with path.open("rb") as stream:
            release = loadmat(stream, simplify_cells=True, variable_names=["RELEASE"])["RELEASE"]
        pictures = _structs(release["annolist"])
        training = np.atleast_1d(release["img_train"]).ravel()
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing: `pose data fetch mpii --only annotations` gets it") from None
    except (KeyError, TypeError, ValueError, MatReadError, NotImplementedError) as error:
        raise ConfigError(f"{path} is not MPII's annotation file: {error!r}") from None
    people, unplaced = [], 0
    for number, (picture, used) in enumerate(zip(pictures, training, strict=False), 1):
        if not used:
            continue
        for place, rectangle in enumerate(_structs(picture.get("annorect")), 1):
            points = [
                point for found in _structs(rectangle.get("annopoints")) for point in _structs(found.get("point"))
            ]
            if not points:
                continue
            scale, position = _number(rectangle.get("scale")), _structs(rectangle.get("objpos"))
            if math.isnan(scale) or scale <= 0 or not position:
                unplaced += 1
                continue
            labels, weights = np.zeros((len(MPII), 2)), np.zeros(len(MPII))
            for point in points:
                joint = int(point["id"])
                labels[joint] = float(point["x"]) - 1, float(point["y"]) - 1
                weights[joint] = 1
            corners = [_number(rectangle.get(key)) for key in ("x1", "y1", "x2", "y2")]
            head = HEAD_SHARE * math.hypot(corners[2] - corners[0], corners[3] - corners[1])
            box = box_around((_number(position[0].get("x")), _number(position[0].get("y"))), scale)
            file = images / str(picture["image"]["name"])
            people.append(_person(set_index, file, box, labels, weights, 1000 * number + place, number, head))
    if unplaced:
        log.info("%s: %d people have joints but no place or scale and are left out, as in HRNet", path, unplaced)
    return LabelledSet(MPII.joints, people, {})


def _person(
    set_index: int, picture: Path, box: np.ndarray, labels: np.ndarray, weights: np.ndarray, annotation: int,
    image: int, head: float,
) -> Person:  # fmt: skip
    area = BODY_SHARE * float((box[2] - box[0]) * (box[3] - box[1]))
    return Person(set_index, picture, box, labels * (weights > 0)[:, None], weights, annotation, image, area, head)


def _structs(value: Any) -> list[dict[str, Any]]:
    """MATLAB's struct array as a list: it is read as one dictionary, as several, or as an empty array."""
    if isinstance(value, dict):
        return [value]
    return [item for item in value if isinstance(item, dict)] if isinstance(value, (list, np.ndarray)) else []


def _number(value: Any) -> float:
    """A MATLAB number; NaN where the field is empty or missing."""
    return float(value) if isinstance(value, (int, float, np.number)) else math.nan


def _head_sizes(path: Path, count: int) -> np.ndarray:
    """(count,) float64 pixels: `HEAD_SHARE` x the diagonals of the head rectangles beside `path`; NaN without them."""
    names = (f"gt_{path.stem}.mat", f"mpii_gt_{path.stem.removeprefix('mpii_')}.mat")
    beside = next((path.with_name(name) for name in names if path.with_name(name).is_file()), None)
    if beside is None:
        return np.full(count, math.nan)
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        corners = np.asarray(loadmat(beside)["headboxes_src"], np.float64)  # (2, 2, N): corner, x or y, person
        sizes = HEAD_SHARE * np.linalg.norm(corners[1] - corners[0], axis=0)
    except (KeyError, ValueError, IndexError, MatReadError, NotImplementedError) as error:
        raise ConfigError(f"{beside} has no head rectangles: {error!r}") from None
    if len(sizes) != count:
        raise ConfigError(f"{beside} has {len(sizes)} head rectangles, {path.name} {count} people: they do not belong")
    return np.asarray(sizes)
