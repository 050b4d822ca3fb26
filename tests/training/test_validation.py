"""`pose validate` on real pictures: boxes of any source, sets of one's own, what is drawn and what is printed."""

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor

import pose
from model.card import Card, Evaluation
from model.crop import Region, transform
from model.package import Package, load_package
from model.skeletons import COCO
from training.boxes import Boxes, load_detector, pictures_by_id
from training.config import ConfigError, DataSet
from training.gallery import write_gallery
from training.measuring import Found, TorchEngine, evaluate_boxes, find, run_boxes
from training.people import Person, read_people
from training.report import build_report
from training.validation import Request, choose_sets, run_validation


@pytest.fixture(scope="module")
def package(pose_package: Path) -> Package:
    return load_package(str(pose_package))


@pytest.fixture
def own_sets(monkeypatch: pytest.MonkeyPatch, data: Path, data_set: DataSet) -> None:
    """The named sets are the small one, and one that is not there."""
    absent = data_set.model_copy(update={"name": "absent", "annotations": "absent.json"})
    monkeypatch.setattr("training.validation.VALIDATION_SETS", {"coco-val": data_set, "absent": absent})
    monkeypatch.setattr("training.validation.EVERYONE", ("coco-val", "absent"))
    monkeypatch.setenv("POSE_DATA", str(data))


@pytest.fixture(scope="module")
def found(package: Package, data: Path, data_set: DataSet) -> Found:
    return find(package, data_set, data, TorchEngine(package))


def test_batches_and_pictures_change_nothing(package: Package, data: Path, data_set: DataSet, found: Found) -> None:
    people = read_people(data_set, data, "coco17")
    engine = TorchEngine(package)
    for index in (4, 0):
        alone = run_boxes(engine, package, Boxes.of_people([people[index]]), "one", flip_test=True)
        np.testing.assert_allclose(alone.keypoints[0], found.raw.keypoints[index], atol=1e-2)
        np.testing.assert_allclose(alone.scores[0], found.raw.scores[index], atol=1e-4)


def test_scores_are_calibrated_after_the_run_as_the_codec_does(package: Package, found: Found) -> None:
    halved = tuple((0.0, 0.5) for _ in COCO.joints)
    codec = replace(package.codec, calibration=halved)
    np.testing.assert_allclose(found.calibrated(codec).scores, found.raw.scores / 2, rtol=1e-5)
    assert found.evaluate(codec, COCO).metrics["PCK@0.2"] == found.evaluate(package.codec, COCO).metrics["PCK@0.2"]


@pytest.mark.usefixtures("own_sets")
def test_by_default_the_sets_that_are_there_are_scored_and_the_others_are_named(
    package: Package, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "pose.training"):
        [entry] = run_validation(package, Request())
    assert "so not scored: absent" in caplog.text
    assert (entry.data, entry.pictures, entry.people, entry.boxes) == ("people", 2, 5, "ground truth")
    low, high = entry.intervals["PCK@0.2"]
    assert low <= entry.metrics["PCK@0.2"] <= high


@pytest.mark.usefixtures("own_sets")
def test_a_set_of_ones_own_needs_no_data_folder(
    package: Package, data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    [named] = run_validation(package, Request(["coco-val"]))
    monkeypatch.setenv("POSE_DATA", str(tmp_path / "nowhere"))
    [own] = run_validation(package, Request(annotations=data / "people.json", images=data / "images"))
    assert own.model_copy(update={"data": named.data}) == named


def test_mpii_labels_are_scored_by_heads_and_in_groups(package: Package, data: Path, tmp_path: Path) -> None:
    joints = [[10.0 * k, 20.0 * k] for k in range(16)]
    entry = {"image": "bus.jpg", "center": [150.0, 600.0], "scale": 2.5, "joints": joints, "joints_vis": [1] * 16}
    (tmp_path / "valid.json").write_text(json.dumps([entry]))
    request = Request(annotations=tmp_path / "valid.json", images=data / "images")
    # the package's skeleton has neither neck nor head_top, and no head rectangles are there: no head has a length
    assert "PCKh@0.5 mean" not in run_validation(package, request)[0].metrics
    from scipy.io import savemat

    savemat(tmp_path / "gt_valid.mat", {"headboxes_src": np.array([[[0.0], [0.0]], [[30.0], [40.0]]])})
    [scored] = run_validation(package, request)
    assert {"PCKh@0.5 mean", "PCKh@0.5 wrist", "PCKh@0.1 mean"} < set(scored.metrics)
    assert not {"AP", "PCKh@0.5 head"} & set(scored.metrics)


class AllKnowing:
    """An engine that knows where the joints of the people in its crops are, which come in the order of `people`."""

    def __init__(self, package: Package, people: Sequence[Person]) -> None:
        self.codec, self.padding, self.people = package.codec, package.card.padding, list(people)

    def __call__(self, crops: np.ndarray) -> Tensor:
        size, now = self.codec.input_size, self.people[: len(crops)]
        del self.people[: len(crops)]
        points = [transform(p.keypoints, Region.around(p.box, size, self.padding).affine(size)) for p in now]
        return self.codec.encode(torch.from_numpy(np.stack(points))).clamp(min=1e-6).log()


def test_detected_people_are_rescored_and_found_once(
    package: Package, data: Path, data_set: DataSet, tmp_path: Path
) -> None:
    people = read_people(data_set, data, "coco17")
    content = json.loads((data / "people.json").read_text())
    rows = [
        {"image_id": a["image_id"], "category_id": 1, "bbox": a["bbox"], "score": 0.8} for a in content["annotations"]
    ]
    again = {**rows[0], "score": 0.9}  # the same person, before all others: the second most certain but for suppression
    none = [{**rows[0], "category_id": 2}, {**rows[0], "score": -0.5}, {**rows[0], "image_id": 99}]
    (tmp_path / "boxes.json").write_text(json.dumps([*rows, *none, again]))
    request = Request(
        annotations=data / "people.json", images=data / "images", detector=tmp_path / "boxes.json", flip_test=False
    )
    engine = AllKnowing(package, [*people[:3], people[0], *people[3:]])  # picture by picture
    [entry] = run_validation(package, request, engine)
    assert not engine.people
    assert (entry.boxes, entry.people, entry.pictures) == ("detections boxes.json", 5, 2)
    assert (entry.metrics["AP"], entry.metrics["AR"], entry.intervals["AP"]) == (100, 100, (100, 100))
    boxes = Boxes.from_file(tmp_path / "boxes.json", pictures_by_id(data / "people.json", data / "images"))
    assert len(boxes) == 6
    assert boxes.boxes[0].tolist() == [50, 400, 245, 903]


def test_a_box_that_nobody_is_in_costs_precision_by_its_score(package: Package, data: Path, data_set: DataSet) -> None:
    people = read_people(data_set, data, "coco17")
    upside_down = people[0].keypoints * [1, -1] + [0, people[0].box[1] + people[0].box[3]]
    elsewhere = replace(people[0], keypoints=upside_down)
    boxes = Boxes.of_people([*people, elsewhere])
    sure = replace(boxes, scores=np.array([0.5, 0.5, 0.5, 0.5, 0.5, 0.9]))
    unsure = replace(boxes, scores=np.array([0.5, 0.5, 0.5, 0.5, 0.5, 0.1]))
    figures = []
    for one in (sure, unsure):
        engine = AllKnowing(package, [*people[:3], elsewhere, *people[3:]])
        figures.append(evaluate_boxes(package, data_set, data, engine, one, flip_test=False).metrics["AP"])
    # first of all: precision is at most 5 / 6 at every recall; last of all: it is never read
    assert figures == [pytest.approx(100 * 5 / 6, abs=0.01), 100]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param("[]", "none of its people", id="empty"),
        pytest.param('[{"image_id": 1}]', "no file of detections", id="fields missing"),
        pytest.param('{"a": 1}', "no file of detections", id="another json"),
        pytest.param("[", "damaged", id="no json"),
    ],
)
def test_a_file_that_holds_no_detections_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "boxes.json").write_text(content)
    with pytest.raises(ConfigError, match=rf"boxes\.json.*{message}"):
        Boxes.from_file(tmp_path / "boxes.json", {1: Path("a.jpg")})


def test_the_bundled_detector_is_scored_end_to_end(package: Package, data: Path) -> None:
    own = {"annotations": data / "people.json", "images": data / "images"}
    detector = load_detector("bundled")
    [entry] = run_validation(package, Request(detector=detector, box_score=0.3, flip_test=False, **own))
    assert entry.boxes == "person_yolo26n, score >= 0.3"
    assert entry.flip_test is False
    assert {"AP", "AR"} <= set(entry.metrics)
    [blind] = run_validation(package, Request(detector=detector, box_score=1.0, **own))
    assert (blind.metrics["AP"], blind.intervals["AP"]) == (0, (0, 0))


@pytest.mark.usefixtures("own_sets")
@pytest.mark.parametrize(
    ("request_", "message"),
    [
        pytest.param(Request(["lsp"]), "unknown validation set 'lsp'; known: coco-val, absent", id="unknown"),
        pytest.param(Request(["absent"]), r"absent\.json is missing", id="absent"),
        pytest.param(Request(["coco-val"], annotations=Path("a.json")), "do not go together", id="two sets"),
        pytest.param(Request(images=Path("a")), "belongs to --annotations", id="pictures alone"),
        pytest.param(Request(detector=Path("b"), gallery=Path("g")), "drawn with the labelled boxes", id="gallery"),
    ],
)
def test_what_does_not_go_together_is_refused(package: Package, request_: Request, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_validation(package, request_)


def test_a_folder_without_any_set_says_how_to_name_ones_own(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="name a set of your own with --annotations"):
        choose_sets(None, tmp_path, COCO)


def test_the_gallery_shows_the_worst_first_and_is_one_picture(package: Package, found: Found, tmp_path: Path) -> None:
    rows = []
    for shown in (1, 5):
        path = write_gallery(tmp_path / f"{shown}" / "worst.jpg", found, package, shown)
        assert [file.name for file in path.parent.iterdir()] == ["worst.jpg"]
        picture = cv2.imread(str(path))
        assert picture is not None
        rows.append(picture)
    assert rows[1].shape[1] == 8 * 192
    assert rows[1].shape[0] > 2 * 256  # four pairs to a row
    tile = slice(30, 286), slice(0, 384)
    assert np.abs(rows[0][tile].astype(int) - rows[1][tile]).mean() < 1  # the very worst leads both


@pytest.mark.usefixtures("own_sets")
def test_the_command_prints_writes_and_draws_it_all(
    pose_package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs = ["--gallery", tmp_path / "g", "--reliability", tmp_path / "r.png", "--json", tmp_path / "f.json"]
    assert pose.main(["validate", str(pose_package), *map(str, outputs)]) == 0
    printed = capsys.readouterr().out
    assert "random_w16" in printed
    assert "people, 5 people" in printed
    [entry] = json.loads((tmp_path / "f.json").read_text())
    assert f"{entry['metrics']['PCK@0.2']:.1f}" in printed
    assert [file.name for file in (tmp_path / "g").iterdir()] == ["worst_people.jpg"]
    assert cv2.imread(str(tmp_path / "r.png")) is not None


def test_an_unknown_engine_is_one_line(pose_package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pose.main(["validate", str(pose_package), "--engine", "steam"]) == 2
    assert "POSE_ENGINE='steam'" in capsys.readouterr().err


def test_the_report_fits_eighty_columns_and_keeps_the_papers_order(package: Package) -> None:
    groups = ("head", "shoulder", "elbow", "wrist", "hip", "knee", "ankle", "mean")
    heads = {f"PCKh@{threshold} {group}": 90 + threshold for threshold in (0.5, 0.1) for group in groups}
    common: dict[str, Any] = {"pictures": 155, "people": 2958, "flip_test": True}
    report = [
        Evaluation(
            data="mpii-val", boxes="ground truth", metrics=heads, intervals={"PCKh@0.5 mean": (88, 91.2)},
            notes=["a note"], **common,
        ),
        Evaluation(
            data="coco2017-val", boxes="person_yolo26n, score >= 0.3", metrics={"AP": 17.24, "AP50": 43.8, "AR": 21.1},
            intervals={"AP": (14.1, 21.1)}, **common,
        ),
    ]  # fmt: skip
    text = render(package.card, report)
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "…" not in text
    header = next(line for line in text.splitlines() if "shoulder" in line)
    assert header.split() == ["set", "figure", *groups]
    for piece in ("17.2", "14.1-21.1", "88.0-91.2", "90.5", "mpii-val: a note", "score >= 0.3", "but pelvis"):
        assert piece in text


def render(card: Card, report: list[Evaluation]) -> str:
    console = Console(width=80)
    with console.capture() as capture:
        console.print(build_report(card, "torch", report))
    return capture.get()
