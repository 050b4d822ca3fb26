"""Reading a pack: a set whose people were cut out once, as sharded tar files with an index beside them.

A pack is a folder of `index.json` and `crops-000000.tar`, `crops-000001.tar`, ... in webdataset's layout: a person is
`<number>.jpg` (the crop) and `<number>.json` (its entry of the index). The index also says at which byte of which
shard every JPEG lies, so that any person can be had at once, in any order; `training.packing` writes it.
"""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from training.config import ConfigError
from training.crops import PackedCrop
from training.labels import LabelledSet, Person, read_json

INDEX, FORMAT = "index.json", 1


def is_pack(folder: Path) -> bool:
    """Whether `folder` holds a pack."""
    return (folder / INDEX).is_file()


def read_pack(folder: Path, root: Path, set_index: int) -> LabelledSet:
    """The people of a pack, in the order they were packed, each with its crop.

    Args:
        root: data folder; pictures are named relative to it, whether they are there or not.

    Raises:
        ConfigError: no pack, one of another version, or a shard is missing or shorter than the index says.
    """
    index = read_json(folder / INDEX)
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise ConfigError(f"{folder} is no pack of format {FORMAT}: pack the set again with `pose data pack`")
    try:
        shards = [_shard(folder, shard) for shard in index["shards"]]
        size = int(index["size"][0]), int(index["size"][1])
        people = [_person(entry, shards, size, root, set_index) for entry in index["people"]]
        return LabelledSet(tuple(index["joints"]), people, {})
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ConfigError(f"{folder / INDEX} is damaged: {error!r}; pack the set again") from None


def _shard(folder: Path, shard: dict[str, Any]) -> Path:
    path = folder / str(shard["file"])
    length = path.stat().st_size if path.is_file() else 0
    if length != shard["bytes"]:
        raise ConfigError(f"{path} has {length} bytes, {shard['bytes']} are expected: copy it again, or pack again")
    return path


def _person(
    entry: dict[str, Any], shards: list[Path], size: tuple[int, int], root: Path, set_index: int
) -> Person:  # fmt: skip
    shard, offset, length = entry["place"]
    head = entry.get("head_size")
    return Person(
        set_index=set_index,
        picture=root / entry["picture"],
        box=np.array(entry["box"], np.float64),
        keypoints=np.array(entry["keypoints"], np.float64).reshape(-1, 2),
        weights=np.array(entry["weights"], np.float64),
        annotation=entry["annotation"],
        image=entry["image"],
        area=float(entry["area"]),
        head_size=math.nan if head is None else float(head),
        packed=PackedCrop(shards[shard], offset, length, np.array(entry["affine"], np.float64), size),
    )


def describe_person(person: Person, picture: str, affine: np.ndarray) -> dict[str, Any]:
    """A person's entry of the index, without its place; floats are written so that they read back the same.

    Args:
        picture: name of the picture, relative to the data folder.
        affine: (2, 3), picture -> crop.
    """
    return {
        "picture": picture,
        "annotation": person.annotation,
        "image": person.image,
        "box": person.box.tolist(),
        "area": person.area,
        "head_size": None if math.isnan(person.head_size) else person.head_size,
        "keypoints": person.keypoints.tolist(),
        "weights": person.weights.tolist(),
        "affine": affine.tolist(),
    }


def joint_counts(labelled: LabelledSet) -> dict[str, int]:
    """How many people have each joint labelled."""
    counts: Counter[str] = Counter(dict.fromkeys(labelled.joints, 0))
    for person in labelled.people:
        counts.update(joint for joint, weight in zip(labelled.joints, person.weights, strict=True) if weight > 0)
    return dict(counts)
