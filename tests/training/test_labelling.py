"""`pose label`: a package's own predictions as a set that can be trained on."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import pose
from model.package import Package, load_package
from model.skeletons import COCO
from training.config import ConfigError, DataSet
from training.evaluation import Predictions
from training.labelling import agree, label_set
from training.measuring import TorchEngine
from training.oks import joint_oks
from training.people import read_people


@pytest.fixture(scope="module")
def package() -> Package:
    return load_package("sdhrnet_w32_coco")


def test_a_joint_is_worth_less_the_more_the_looks_differ(package: Package) -> None:
    package = replace(package, codec=replace(package.codec, calibration=()))
    points = np.random.default_rng(0).uniform(0, 200, (1, 17, 2)).astype(np.float32)
    scores = np.full((1, 17), 0.8, np.float32)
    moved = points.copy()
    moved[0, 3] += [40, 0]
    found = agree([Predictions(points, scores), Predictions(moved, scores)], np.array([5000.0]), package)
    assert found.scores[0, 0] == pytest.approx(0.8)
    np.testing.assert_allclose(found.keypoints[0, 0], points[0, 0], rtol=1e-6)
    np.testing.assert_allclose(found.keypoints[0, 3], points[0, 3] + [20, 0], rtol=1e-6)
    apart = joint_oks(points, points + np.array([20.0, 0.0]), np.array([5000.0]), np.array(COCO.sigmas))
    assert found.scores[0, 3] == pytest.approx(0.8 * apart[0, 3], rel=1e-5)
    surer = Predictions(moved, np.full((1, 17), 0.2, np.float32))  # the less sure look moves the mean less
    unequal = agree([Predictions(points, scores), surer], np.array([5000.0]), package)
    np.testing.assert_allclose(unequal.keypoints[0, 3], points[0, 3] + [8, 0], rtol=1e-5)


def test_labels_are_a_set_that_training_reads_with_the_worth_as_weight(
    package: Package, data: Path, tmp_path: Path
) -> None:
    content = json.loads((data / "people.json").read_text())
    content["annotations"][4]["iscrowd"] = 1
    before = json.loads(json.dumps(content["annotations"][4]))
    labelled = label_set(content, data / "images", package, TorchEngine(package), 0.3)
    assert {**labelled["annotations"][4]} == before
    assert package.card.sha256[:12] in labelled["info"]["joints"]
    (tmp_path / "labelled.json").write_text(json.dumps(labelled))
    entry = DataSet(name="mine", annotations="labelled.json", images=str(data / "images"), licence="test")
    people = read_people(entry, tmp_path, "coco17")
    assert len(people) == 4
    for person in people:
        annotation = next(a for a in labelled["annotations"] if a["id"] == person.annotation)
        kept = np.array(annotation["confidence"]) >= 0.3
        assert kept.sum() == annotation["num_keypoints"] > 5  # whoever stands in the middle of bus.jpg is seen
        np.testing.assert_allclose(person.weights, np.where(kept, annotation["confidence"], 0))
        inside = (person.keypoints[kept] > person.box[:2] - 60) & (person.keypoints[kept] < person.box[2:] + 60)
        assert inside.mean() > 0.9


def test_pictures_without_labels_are_labelled_by_the_command(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "people.json"
    assert pose.main(["label", "sdhrnet_w32_coco", str(data / "images"), "-o", str(out)]) == 0
    content = json.loads(out.read_text())
    people = [a for a in content["annotations"] if a["num_keypoints"]]
    joints = sum(a["num_keypoints"] for a in people)
    assert f"labelled {joints} joints of {len(people)} people in 2 pictures: {out}" in capsys.readouterr().out
    assert {image["file_name"] for image in content["images"]} == {"bus.jpg", "zidane.jpg"}
    assert len(people) >= 4
    assert [file.name for file in out.parent.iterdir()] == ["people.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param({"images": []}, "not in COCO's format", id="no annotations"),
        pytest.param({"images": [], "annotations": []}, "no boxes", id="nobody"),
        pytest.param({"images": [], "annotations": [{"id": 1, "image_id": 2}]}, "bbox", id="no box"),
    ],
)
def test_a_set_without_boxes_is_refused(package: Package, content: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        label_set(content, Path(), package, TorchEngine(package), 0.3)


def test_an_empty_folder_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pose.main(["label", "sdhrnet_w32_coco", str(tmp_path), "-o", str(tmp_path / "out.json")]) == 2
    assert "has no pictures" in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()
