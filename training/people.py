"""People of any set the package knows, mapped to one skeleton by joint name, and pictures cut once and kept.

What a set is, is seen from its `annotations`: a folder with an index is a pack (`training.packs`), a `.mat` is MPII's,
a json that holds a list is HRNet's MPII, any other json is in COCO's format.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from model.skeletons import SKELETONS
from training.coco import read_coco
from training.config import ConfigError, DataSet
from training.crops import CONTEXT, DecodedCrop, KeptCrop, PackedCrop, keep
from training.labels import LabelledSet, Person, fill_blanks, onto_joints, read_json
from training.mpii import read_hrnet, read_mat
from training.packs import is_pack, read_pack

__all__ = [
    "CONTEXT", "DecodedCrop", "KeptCrop", "LabelledSet", "PackedCrop", "Person", "each_crop", "keep_crops", "read_json",
    "read_people", "read_picture", "read_set",
]  # fmt: skip

AT_ONCE = 64  # pictures decoded ahead of who takes the crops


def read_people(data: DataSet, root: Path, skeleton: str, set_index: int = 0) -> list[Person]:
    """All people of one set that have at least one labelled joint of `skeleton`.

    Joints the set does not know get weight 0, but for those that `data.derive` takes from two others; `confidence` per
    joint, where the set has it, becomes the weight, but for sets that say `confidence: false`.

    Raises:
        ConfigError: a file is missing or damaged, or `derive` names an unknown joint.
    """
    return onto_joints(read_set(data, root, set_index), SKELETONS[skeleton].joints, data.derive, data.name)


def read_set(data: DataSet, root: Path, set_index: int = 0) -> LabelledSet:
    """The people of one set in its own joints, `extra_joints` filled in.

    Raises:
        ConfigError: a file is missing or damaged.
    """
    path, images = root / data.annotations, root / data.images
    if path.is_dir() and is_pack(path):
        labelled = read_pack(path, root, set_index)
    elif path.suffix == ".mat":
        labelled = read_mat(path, images, set_index)
    elif path.is_dir():
        raise ConfigError(f"{path} is a folder, but no pack: it has no index.json")
    else:
        content = read_json(path)
        reader = read_hrnet if isinstance(content, list) else read_coco
        labelled = reader(content, path, images, set_index)
    if data.extra_joints:
        people = fill_blanks(labelled.people, read_json(root / data.extra_joints), labelled.joints)
        labelled = LabelledSet(labelled.joints, people, labelled.sizes)
    if not data.confidence:
        people = [replace(person, weights=(person.weights > 0).astype(np.float64)) for person in labelled.people]
        labelled = replace(labelled, people=people)
    return labelled


def read_picture(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB.

    Raises:
        ConfigError: missing or broken.
    """
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    if picture is None:
        raise ConfigError(f"{path} is missing or no picture")
    return np.asarray(picture)


def keep_crops(people: Sequence[Person], size: tuple[int, int], tick: Callable[[int], object] = int) -> list[KeptCrop]:
    """Decode every picture once and keep what crops of at most `size` (height, width) can need of it.

    The crops of packed people stay in their shards. `tick` is called with the number of people done.

    Raises:
        ConfigError: a picture is broken, or a pack was made for smaller crops.
    """
    kept: list[KeptCrop | None] = [None] * len(people)
    for index, crop in each_crop(people, size):
        kept[index] = crop
        tick(1)
    return [crop for crop in kept if crop is not None]


def each_crop(people: Sequence[Person], size: tuple[int, int]) -> Iterator[tuple[int, KeptCrop]]:
    """(index, crop) of everyone, as `keep_crops` keeps them, picture by picture, with few in memory at a time."""
    by_picture: dict[Path, list[int]] = {}
    for index, person in enumerate(people):
        if person.packed is None:
            by_picture.setdefault(person.picture, []).append(index)
            continue
        packed = person.packed
        if size[0] > packed.size[0] or size[1] > packed.size[1]:
            raise ConfigError(
                f"{packed.shard.parent} was packed for crops of at most {packed.size[0]}x{packed.size[1]}, "
                f"{size[0]}x{size[1]} is wanted: pack the set again with --size {size[0]}x{size[1]}"
            )
        yield index, packed

    def cut_out(item: tuple[Path, list[int]]) -> list[tuple[int, KeptCrop]]:
        picture = read_picture(item[0])
        return [(index, keep(picture, people[index].box, size)) for index in item[1]]

    pictures = list(by_picture.items())
    with ThreadPoolExecutor(4) as pool:
        for start in range(0, len(pictures), AT_ONCE):
            for crops in pool.map(cut_out, pictures[start : start + AT_ONCE]):
                yield from crops
