"""Packs: the same people and the same crops, from tar files instead of pictures."""

import json
import pickle
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset

from model.skeletons import COCO, SKELETONS
from training.config import Augmentation, ConfigError, DataSet
from training.loader import Crops, collate
from training.packing import write_pack
from training.people import LabelledSet, PackedCrop, Person, keep_crops, read_people, read_set

SIZE = (128, 96)


@pytest.fixture(scope="module")
def packed(data: Path, data_set: DataSet, tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    folder = tmp_path_factory.mktemp("packs") / "100% people"
    told: list[tuple[int, int]] = []
    done = write_pack(data_set, data, folder, SIZE, lambda *counts: told.append(counts), shard_bytes=25_000)
    assert told == [(count, 5) for count in range(1, 6)]
    assert (done.people, done.shards) == (5, len(list(folder.glob("*.tar"))))
    assert done.shards > 1
    assert done.bytes == sum(path.stat().st_size for path in folder.iterdir())
    return DataSet(name="packed", annotations=str(folder), licence="test")


def same(first: Person, second: Person) -> bool:
    names = [field.name for field in fields(Person) if field.name != "packed"]
    pairs = [(getattr(first, name), getattr(second, name)) for name in names]
    return all(np.array_equal(a, b, equal_nan=isinstance(a, float)) for a, b in pairs)


def test_a_pack_gives_the_same_people(data: Path, data_set: DataSet, packed: DataSet) -> None:
    people, again = (read_people(entry, data, "coco17") for entry in (data_set, packed))
    assert all(same(first, second) for first, second in zip(people, again, strict=True))
    assert people[0].packed is None
    assert isinstance(again[0].packed, PackedCrop)
    index = json.loads((data / packed.annotations / "index.json").read_text())
    assert index["joints"] == list(COCO.joints)
    assert (index["name"], index["licence"]) == ("people", "test")
    assert (index["counts"]["people"], index["counts"]["pictures"]) == (5, 2)
    assert index["people"][0]["picture"] == "images/bus.jpg"


def test_its_crops_are_the_kept_ones_up_to_jpegs_error(data: Path, data_set: DataSet, packed: DataSet) -> None:
    direct = keep_crops(read_people(data_set, data, "coco17"), SIZE)
    again = keep_crops(read_people(packed, data, "coco17"), SIZE)
    for mine, theirs in zip(direct, again, strict=True):
        assert mine.affine == pytest.approx(theirs.affine)
        difference = np.abs(mine.pixels.astype(float) - theirs.pixels)
        assert difference.mean() < 4
        assert difference.mean() < np.abs(np.diff(mine.pixels.astype(float), axis=1)).mean() / 2  # in the same place


def test_training_sees_the_same_batches(data: Path, data_set: DataSet, packed: DataSet) -> None:
    batches = []
    for entry in (data_set, packed):
        people = read_people(entry, data, "coco17")
        crops = Crops(people, keep_crops(people, SIZE), SIZE, COCO, Augmentation(dropout=0, photometric=0), 3)
        batches.append(collate([crops[person, 100 + person] for person in range(5)]))
    first, second = batches
    assert first[0].shape == second[0].shape == (5, *SIZE, 3)
    assert (first[1] == second[1]).all()
    assert (first[2] == second[2]).all()
    assert (first[0].float() - second[0].float()).abs().mean() < 4


def test_packed_crops_go_to_loader_processes_without_their_pixels(data: Path, packed: DataSet) -> None:
    crop = keep_crops(read_people(packed, data, "coco17"), SIZE)[3]
    sent = pickle.dumps(crop)
    assert len(sent) < 1500
    assert (pickle.loads(sent).pixels == crop.pixels).all()


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_any_reader_of_webdatasets_layout_takes_it(data: Path, packed: DataSet) -> None:
    shards = sorted(str(path) for path in (data / packed.annotations).glob("*.tar"))
    samples = list(webdataset.WebDataset(shards, shardshuffle=False))  # which leaves closing files to Python
    assert [sample["__key__"] for sample in samples] == [f"{number:08d}" for number in range(5)]
    assert all(sample["jpg"].startswith(b"\xff\xd8") for sample in samples)
    assert json.loads(samples[4]["json"])["annotation"] == 5


def test_a_pack_serves_other_skeletons_and_derived_joints(data: Path, packed: DataSet) -> None:
    entry = packed.model_copy(update={"derive": {"pelvis": ("left_hip", "right_hip")}})
    person = read_people(entry, data, "mpii16")[0]
    joints = SKELETONS["mpii16"].joints
    hips = [person.keypoints[joints.index(f"{side}_hip")] for side in ("left", "right")]
    assert person.keypoints[joints.index("pelvis")] == pytest.approx(np.mean(hips, 0))


def test_larger_crops_than_packed_are_refused(data: Path, packed: DataSet) -> None:
    with pytest.raises(ConfigError, match=r"at most 128x96, 256x192 is wanted: pack the set again with --size 256x192"):
        keep_crops(read_people(packed, data, "coco17"), (256, 192))


def copied(packed: DataSet, data: Path, folder: Path) -> tuple[Path, DataSet]:
    shutil.copytree(data / packed.annotations, folder)
    return folder, packed.model_copy(update={"annotations": str(folder)})


def test_a_shard_that_is_not_whole_is_named(data: Path, packed: DataSet, tmp_path: Path) -> None:
    folder, entry = copied(packed, data, tmp_path / "pack")
    shard = folder / "crops-000001.tar"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ConfigError, match=r"crops-000001.tar has \d+ bytes, \d+ are expected"):
        read_people(entry, data, "coco17")


def test_a_crop_that_is_no_picture_is_named(data: Path, packed: DataSet, tmp_path: Path) -> None:
    folder, entry = copied(packed, data, tmp_path / "pack")
    shard = folder / "crops-000000.tar"
    shard.write_bytes(b"\0" * shard.stat().st_size)
    crop = keep_crops(read_people(entry, data, "coco17"), SIZE)[0]
    with pytest.raises(ConfigError, match=r"crops-000000.tar is damaged: no picture at byte 512"):
        assert crop.pixels is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"format": 99}, "no pack of format 1", id="another version"),
        pytest.param({"people": [{}]}, "index.json is damaged", id="no places"),
    ],
)
def test_unreadable_packs_are_named(
    data: Path, packed: DataSet, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    folder, entry = copied(packed, data, tmp_path / "pack")
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps({**index, **change}))
    with pytest.raises(ConfigError, match=message):
        read_people(entry, data, "coco17")


def test_a_pack_is_replaced_by_a_new_one_and_nothing_else_is(data: Path, data_set: DataSet, tmp_path: Path) -> None:
    folder = tmp_path / "pack"
    write_pack(data_set, data, folder, (64, 48))
    write_pack(data_set, data, folder, (32, 32))
    assert json.loads((folder / "index.json").read_text())["size"] == [32, 32]
    assert [path.name for path in tmp_path.iterdir()] == ["pack"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(ConfigError, match="mine exists and is no pack"):
        write_pack(data_set, data, tmp_path / "mine", (64, 48))
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"


def test_a_broken_picture_leaves_no_pack(data: Path, data_set: DataSet, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "bus.jpg").write_bytes(b"no picture")
    entry = data_set.model_copy(update={"images": str(tmp_path / "images")})
    with pytest.raises(ConfigError, match=r"bus\.jpg is missing or no picture"):
        write_pack(entry, data, tmp_path / "pack", (64, 48))
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_a_pack_of_a_pack_is_refused(data: Path, packed: DataSet, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="packed is a pack already"):
        write_pack(packed, data, tmp_path / "again", (64, 48))


def test_a_folder_without_index_is_no_set(data: Path, tmp_path: Path) -> None:
    entry = DataSet(name="none", annotations=str(tmp_path), licence="x")
    with pytest.raises(ConfigError, match="is a folder, but no pack"):
        read_set(entry, data)


def test_labels_stay_in_the_sets_own_joints(data: Path, packed: DataSet) -> None:
    labelled = read_set(packed, data)
    assert isinstance(labelled, LabelledSet)
    assert labelled.joints == COCO.joints
