"""Reading labelled people and cutting their pictures."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.crop import Region, compose, cut, invert
from model.skeletons import COCO, LSP, MPII
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
    entry = write_set(tmp_path, COCO.joints, keypoints=labels, confidence=confidence)
    [person] = read_people(entry, tmp_path, "coco17")
    assert person.weights.tolist() == [0.5] * 16 + [0]
    [person] = read_people(entry.model_copy(update={"confidence": False}), tmp_path, "coco17")
    assert person.weights.tolist() == [1] * 16 + [0]


def test_extra_joints_fill_gaps_and_never_replace_labels(tmp_path: Path) -> None:
    labels = [0, 0, 0] + [3.0, 4.0, 2] * 16
    plain = write_set(tmp_path, COCO.joints, keypoints=labels)
    (tmp_path / "extra.json").write_text(json.dumps({"7": [[9, 9, 0.8], [1, 1, 0.9]]}))
    [person] = read_people(plain.model_copy(update={"extra_joints": "extra.json"}), tmp_path, "coco17")
    assert person.keypoints[0] == pytest.approx([9, 9])
    assert person.weights[0] == pytest.approx(0.8)
    assert person.keypoints[1] == pytest.approx([3, 4])


def test_extra_joints_are_the_sets_first_whatever_is_trained(tmp_path: Path) -> None:
    plain = write_set(tmp_path, COCO.joints, keypoints=[0, 0, 0] + [3.0, 4.0, 2] * 16)
    (tmp_path / "extra.json").write_text(json.dumps({"7": [[9, 9, 0.8]]}))
    [person] = read_people(plain.model_copy(update={"extra_joints": "extra.json"}), tmp_path, "mpii16")
    assert person.keypoints[0] == pytest.approx([3, 4])  # MPII's first joint is no nose


def test_joints_are_derived_as_the_middle_of_two_and_as_sure_as_the_less_sure(tmp_path: Path) -> None:
    labels = [value for i in range(14) for value in (i, 2 * i, 2)]
    confidence = [1.0, 1.0, 0.9, 0.4] + [1.0] * 10
    plain = write_set(tmp_path, LSP.joints, keypoints=labels, confidence=confidence)
    derive = {"pelvis": ("left_hip", "right_hip"), "thorax": ("left_shoulder", "right_shoulder")}
    [person] = read_people(plain.model_copy(update={"derive": derive}), tmp_path, "mpii16")
    pelvis, thorax = MPII.joints.index("pelvis"), MPII.joints.index("thorax")
    assert person.keypoints[pelvis] == pytest.approx([2.5, 5])
    assert person.keypoints[thorax] == pytest.approx([8.5, 17])
    assert person.weights[[pelvis, thorax]] == pytest.approx([0.4, 1])
    assert (person.weights > 0).all()


def test_a_derived_joint_is_unlabelled_where_one_of_its_two_is(tmp_path: Path) -> None:
    labels = [5.0, 5, 2] * 3 + [0, 0, 0] + [5.0, 5, 2] * 10  # no left hip
    plain = write_set(tmp_path, LSP.joints, keypoints=labels)
    entry = plain.model_copy(update={"derive": {"pelvis": ("left_hip", "right_hip")}})
    [person] = read_people(entry, tmp_path, "mpii16")
    assert person.weights[MPII.joints.index("pelvis")] == 0


@pytest.mark.parametrize(
    ("derive", "message"),
    [
        pytest.param(
            {"pelvis": ("left_hip", "tail")}, "'pelvis' needs 'tail', which the set does not label", id="from"
        ),
        pytest.param({"belly": ("left_hip", "right_hip")}, "no joint 'belly' is trained; known: right_ankle", id="to"),
        pytest.param({"neck": ("left_hip", "right_hip")}, "the set labels 'neck' itself", id="labelled"),
    ],
)
def test_joints_that_cannot_be_derived_are_named(
    tmp_path: Path, derive: dict[str, tuple[str, str]], message: str
) -> None:
    plain = write_set(tmp_path, LSP.joints, keypoints=[1.0, 1.0, 2] * 14)
    with pytest.raises(ConfigError, match=f"set: derive: .*{message}"):
        read_people(plain.model_copy(update={"derive": derive}), tmp_path, "mpii16")


def test_people_without_any_trained_joint_are_left_out(tmp_path: Path) -> None:
    assert read_people(write_set(tmp_path, ("tail", "wing"), keypoints=[1, 1, 2] * 2), tmp_path, "coco17") == []


@pytest.mark.parametrize(
    ("annotation", "missing"),
    [
        pytest.param({"keypoints": [1, 1, 2]}, "cannot reshape", id="too few joints"),
        pytest.param({"keypoints": [1, 1, 2] * 2, "image_id": 9}, "KeyError", id="no picture"),
        pytest.param({"keypoints": [1, 1, 2] * 2, "bbox": [1, 2]}, "ValueError", id="no box"),
    ],
)
def test_annotations_that_do_not_fit_are_named(tmp_path: Path, annotation: dict[str, Any], missing: str) -> None:
    with pytest.raises(ConfigError, match=rf"annotation 7 does not fit COCO's keypoint format: .*{missing}"):
        read_people(write_set(tmp_path, ("nose", "neck"), **annotation), tmp_path, "coco17")


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
