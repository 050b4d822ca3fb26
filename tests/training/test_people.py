"""Reading labelled people and cutting their pictures."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.crop import Region, compose, cut, invert
from model.skeletons import COCO, LSP
from training.config import ConfigError, DataSet
from training.people import keep_crops, read_people, read_picture


def test_people_come_with_boxes_and_joints_in_picture_pixels(data: Path, data_set: DataSet) -> None:
    people = read_people(data_set, data, "coco17")
    assert len(people) == 5
    assert people[0].box == pytest.approx([50, 400, 245, 903])
    assert people[0].keypoints[0] == pytest.approx([50 + 0.5 * 195, 400 + 0.1 * 503])
    assert (people[0].weights == 1).all()


def write_set(folder: Path, joints: tuple[str, ...], **annotation: Any) -> DataSet:
    base = {"id": 7, "image_id": 1, "iscrowd": 0, "bbox": [0, 0, 10, 20], "area": 100.0, "num_keypoints": len(joints)}
    content = {
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "categories": [{"keypoints": list(joints)}],
        "annotations": [{**base, **annotation}],
    }
    (folder / "set.json").write_text(json.dumps(content))
    return DataSet(name="set", annotations="set.json", images="", licence="test")


def test_joints_map_by_name_and_those_the_set_lacks_weigh_nothing(tmp_path: Path) -> None:
    labels = [value for i in range(14) for value in (i, 2 * i, 2)]
    [person] = read_people(write_set(tmp_path, LSP.joints, keypoints=labels), tmp_path, "coco17")
    ankle = COCO.joints.index("right_ankle")
    assert person.keypoints[ankle] == pytest.approx([0, 0])
    assert person.weights[ankle] == 1
    assert person.weights[:5].tolist() == [0] * 5  # the face
    wrist = LSP.joints.index("left_wrist")
    assert person.keypoints[COCO.joints.index("left_wrist")] == pytest.approx([wrist, 2 * wrist])


def test_confidence_becomes_the_weight_of_labelled_joints_only(tmp_path: Path) -> None:
    labels = [1.0, 1.0, 2] * 16 + [0, 0, 0]
    confidence = [0.5] * 17
    [person] = read_people(
        write_set(tmp_path, COCO.joints, keypoints=labels, confidence=confidence), tmp_path, "coco17"
    )
    assert person.weights.tolist() == [0.5] * 16 + [0]


def test_extra_joints_fill_gaps_and_never_replace_labels(tmp_path: Path) -> None:
    labels = [0, 0, 0] + [3.0, 4.0, 2] * 16
    plain = write_set(tmp_path, COCO.joints, keypoints=labels)
    (tmp_path / "extra.json").write_text(json.dumps({"7": [[9, 9, 0.8], [1, 1, 0.9]]}))
    [person] = read_people(plain.model_copy(update={"extra_joints": "extra.json"}), tmp_path, "coco17")
    assert person.keypoints[0] == pytest.approx([9, 9])
    assert person.weights[0] == pytest.approx(0.8)
    assert person.keypoints[1] == pytest.approx([3, 4])


@pytest.mark.parametrize("skipped", [{"num_keypoints": 0}, {"iscrowd": 1}], ids=str)
def test_people_without_joints_and_crowds_are_left_out(tmp_path: Path, skipped: dict[str, int]) -> None:
    assert read_people(write_set(tmp_path, ("nose",), keypoints=[1, 1, 2], **skipped), tmp_path, "coco17") == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(None, "is missing", id="no file"),
        pytest.param("{", "is damaged", id="no json"),
        pytest.param("{}", "not in COCO's keypoint format", id="other json"),
    ],
)
def test_unreadable_sets_are_named(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "set.json").write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_people(DataSet(name="s", annotations="set.json", images="", licence="x"), tmp_path, "coco17")


def test_a_broken_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    with pytest.raises(ConfigError, match=r"broken\.jpg is missing or no picture"):
        read_picture(tmp_path / "broken.jpg")


def test_a_crop_from_what_was_kept_is_the_crop_from_the_picture(data: Path, data_set: DataSet) -> None:
    size = (128, 96)
    people = read_people(data_set, data, "coco17")
    done: list[int] = []
    kept = keep_crops(people, size, done.append)
    assert sum(done) == len(kept) == len(people)
    for person, crop in zip(people, kept, strict=True):
        affine = Region.around(person.box, size).affine(size)
        direct = cut(read_picture(person.picture), affine, size).astype(float)
        again = cut(crop.pixels, compose(affine, invert(crop.affine)), size).astype(float)
        assert np.abs(direct - again).mean() < 8  # resampled twice, but in the same place
        shifted = np.abs(direct[:, 3:] - again[:, :-3]).mean()
        assert np.abs(direct - again).mean() < shifted / 2
