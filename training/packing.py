"""Writing a pack (`training.packs`): every person's surroundings as a JPEG in sharded tar files, labels beside them.

The shards are written by webdataset (its `ShardWriter` is maintained and needs no more than PyYAML and braceexpand),
so that any reader of that layout takes them too; where each JPEG lies is read back from the finished tar files.
"""

import json
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from model.package import replace_folder
from training.config import ConfigError, DataSet
from training.packs import FORMAT, INDEX, describe_person, is_pack, joint_counts
from training.people import Person, each_crop, read_set

QUALITY = 92  # of the JPEGs: about a tenth of the pixels' bytes, and errors far below those of resampling
SHARD_BYTES = 256_000_000  # small enough to copy again when a line breaks


@dataclass(frozen=True)
class Packed:
    """What `write_pack` wrote."""

    folder: Path
    people: int
    shards: int
    bytes: int


def write_pack(
    data: DataSet,
    root: Path,
    folder: Path,
    size: tuple[int, int],
    tick: Callable[[int, int], object] = lambda done, total: None,  # noqa: ARG005
    shard_bytes: int = SHARD_BYTES,
) -> Packed:
    """Cut everyone of a set out of their pictures and write them to `folder`, as crops of at most `size` need them.

    Labels stay in the set's own joints, so that a pack serves any skeleton; `extra_joints` are filled in, `derive` is
    left to who reads the pack. The folder is written beside and renamed: it is whole or as it was.

    Args:
        root: data folder.
        size: (height, width).
        tick: called with the number of people done and of all.

    Raises:
        ConfigError: the set cannot be read, is a pack itself or has no people, a picture is broken, the disk is full,
            or `folder` holds something else than a pack.
    """
    if folder.exists() and not is_pack(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists and is no pack: give another folder with -o, or remove it")
    labelled = read_set(data, root)
    if not labelled.people:
        raise ConfigError(f"{data.name} has no people with labelled joints: there is nothing to pack")
    if any(person.packed for person in labelled.people):
        raise ConfigError(f"{data.name} is a pack already: copy its folder, or pack the set it was made from")
    beside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        beside.mkdir(parents=True)
        affines = _write_shards(labelled.people, root, beside, size, tick, shard_bytes)
        shards, places = _places(beside)
        entries = [
            {**describe_person(person, _name(person.picture, root), affines[number]), "place": places[number]}
            for number, person in enumerate(labelled.people)
        ]
        index = {
            "format": FORMAT,
            "name": data.name,
            "licence": data.licence,
            "size": size,
            "joints": labelled.joints,
            "counts": {
                "people": len(entries),
                "pictures": len({person.picture for person in labelled.people}),
                "joints": joint_counts(labelled),
            },
            "shards": shards,
            "people": entries,
        }
        (beside / INDEX).write_text(json.dumps(index, separators=(",", ":")))
        written = sum(path.stat().st_size for path in beside.iterdir())
        replace_folder(beside, folder)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error}; what stood there is unchanged") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return Packed(folder, len(entries), len(shards), written)


def _write_shards(
    people: list[Person], root: Path, folder: Path, size: tuple[int, int], tick: Callable[[int, int], object],
    shard_bytes: int,
) -> dict[int, np.ndarray]:  # fmt: skip
    """Write everyone's crop; returns their affines picture -> crop by the people's numbers."""
    from webdataset import ShardWriter  # here, as importing it takes PyTorch along

    affines: dict[int, np.ndarray] = {}
    pattern = str(folder).replace("%", "%%") + "/crops-%06d.tar"
    with ShardWriter(pattern, maxsize=shard_bytes, verbose=0, encoder=False, mtime=0) as writer:
        for number, crop in each_crop(people, size):
            pixels = cv2.cvtColor(crop.pixels, cv2.COLOR_RGB2BGR)
            done, jpeg = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
            if not done:
                raise OSError(f"no JPEG can be made of {people[number].picture}")
            label = describe_person(people[number], _name(people[number].picture, root), crop.affine)
            text = json.dumps(label, separators=(",", ":")).encode()
            writer.write({"__key__": f"{number:08d}", "jpg": jpeg.tobytes(), "json": text})
            affines[number] = crop.affine
            tick(len(affines), len(people))
    return affines


def _places(folder: Path) -> tuple[list[dict[str, Any]], dict[int, tuple[int, int, int]]]:
    """The shards, and (shard, offset, length) in bytes of everyone's JPEG by their number."""
    shards: list[dict[str, Any]] = []
    places: dict[int, tuple[int, int, int]] = {}
    for path in sorted(folder.glob("crops-*.tar")):
        before = len(places)
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                number, suffix = member.name.split(".")
                if suffix == "jpg":
                    places[int(number)] = (len(shards), member.offset_data, member.size)
        shards.append({"file": path.name, "bytes": path.stat().st_size, "people": len(places) - before})
    return shards, places


def _name(picture: Path, root: Path) -> str:
    return str(picture.relative_to(root) if picture.is_relative_to(root) else picture.absolute())
