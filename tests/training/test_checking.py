"""`pose data check`: a likely body raises no suspicion, and each fault is found and named."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

import pose
from model.skeletons import COCO
from training.checking import Report, check_set
from training.config import DataSet
from training.packing import write_pack
from training.people import read_set

# a person of 400 pixels who stands and faces us: their left is on our right
BODY = {
    "nose": (300, 60), "left_eye": (308, 52), "right_eye": (292, 52), "left_ear": (318, 56), "right_ear": (282, 56),
    "left_shoulder": (345, 110), "right_shoulder": (255, 110), "left_elbow": (360, 185), "right_elbow": (240, 185),
    "left_wrist": (365, 245), "right_wrist": (235, 245), "left_hip": (330, 225), "right_hip": (270, 225),
    "left_knee": (333, 325), "right_knee": (267, 325), "left_ankle": (335, 425), "right_ankle": (265, 425),
}  # fmt: skip
BOX = [220, 30, 160, 410]


def body(**moved: tuple[float, float]) -> dict[str, tuple[float, float]]:
    return {**BODY, **moved}


def swapped(*parts: str) -> dict[str, tuple[float, float]]:
    sides = (("left", "right"), ("right", "left"))
    return body(**{f"{a}_{part}": BODY[f"{b}_{part}"] for part in parts for a, b in sides})


SMALL = {joint: (300 + 0.2 * (x - 300), 225 + 0.2 * (y - 225)) for joint, (x, y) in BODY.items()}


def check(folder: Path, *bodies: dict[str, tuple[float, float]], box: list[float] = BOX, **picture: Any) -> Report:
    """The report of a set of one black picture, 600 wide and 480 high, with these people."""
    cv2.imwrite(str(folder / "a.png"), np.zeros((480, 600, 3), np.uint8))
    annotations = []
    for number, found in enumerate(bodies):
        labels = [(*found[joint], 2) if joint in found else (0, 0, 0) for joint in COCO.joints]
        keypoints = [value for label in labels for value in label]
        annotations.append({"id": 100 + number, "image_id": 1, "bbox": box, "keypoints": keypoints})
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 600, "height": 480, **picture}],
        "categories": [{"keypoints": list(COCO.joints)}],
        "annotations": annotations,
    }
    (folder / "set.json").write_text(json.dumps(content))
    return check_set(read_set(DataSet(name="s", annotations="set.json", licence="x"), folder))


def seen(report: Report) -> list[tuple[str, int | None]]:
    return [(finding.kind, finding.annotation) for finding in report.findings]


@pytest.mark.parametrize(
    "likely",
    [
        pytest.param(BODY, id="standing"),
        pytest.param({joint: (600 - x, y) for joint, (x, y) in BODY.items()}, id="mirrored"),
        pytest.param({joint: (y + 60, x - 60) for joint, (x, y) in BODY.items()}, id="lying, from behind"),
        pytest.param(body(left_wrist=(300, 200), left_elbow=(350, 190)), id="a hand towards the camera"),
        pytest.param(swapped("ankle"), id="feet crossed"),
        pytest.param({joint: BODY[joint] for joint in ("nose", "left_eye", "left_shoulder")}, id="three joints"),
        pytest.param({joint: ((x - 300) * 0.1 + 300, y) for joint, (x, y) in BODY.items()}, id="from the side"),
        pytest.param(body(left_hip=(292, 225), right_hip=(308, 225)), id="hips turned a little beyond the side"),
    ],
)
def test_likely_bodies_raise_no_suspicion(tmp_path: Path, likely: dict[str, tuple[float, float]]) -> None:
    report = check(tmp_path, likely, box=[1, 1, 598, 478])
    assert report.findings == []
    assert report.broken == {}


@pytest.mark.parametrize(
    ("odd", "kind", "text"),
    [
        # a shin of 180 pixels is a body of 720; the upper arms, 15.3 pixels, one of 80.5, the rest ones of 80
        pytest.param(
            {**SMALL, "left_ankle": (306.6, 425)}, "limb too long", "left_knee to left_ankle is 8.9 times", id="shin"
        ),
        # a forearm of 283 pixels is a body of 1887; the upper arms, 76.5 pixels, one of 402.6, the rest ones of 400
        pytest.param(
            body(left_wrist=(590, 20)), "limb too long", "left_elbow to left_wrist is 4.7 times", id="forearm"
        ),
        pytest.param(
            body(left_wrist=(360, 290), right_wrist=(240, 195)), "limbs unlike",
            "left_elbow to left_wrist is 10.5 times as long as its mirror", id="forearms",
        ),
        pytest.param(
            {**BODY, "left_ankle": (335, 482)}, "joint outside the picture", "left_ankle", id="outside the picture"
        ),
        pytest.param(
            body(left_wrist=(365, 10), left_elbow=(590, 60)), "joint far outside the box", "left_elbow", id="far"
        ),
        pytest.param(swapped("shoulder", "elbow", "wrist"), "left and right swapped", "shoulders and hips", id="arms"),
        pytest.param(swapped("hip", "knee", "ankle"), "left and right swapped", "shoulders and hips", id="hips"),
        pytest.param(
            swapped("knee", "ankle") | {"left_knee": (240, 325), "right_knee": (360, 325), "left_ankle": (240, 425),
                                        "right_ankle": (360, 425)},
            "left and right swapped", "knees and ankles lie on the other side", id="legs",
        ),
        pytest.param(swapped("eye", "ear"), "left and right swapped", "eyes and shoulders", id="face"),
        pytest.param(
            body(nose=(300, 50), left_eye=(300, 50), right_eye=(300, 50)), "joints on one spot",
            "3 joints at 300, 50", id="one spot",
        ),
    ],
)  # fmt: skip
def test_unlikely_bodies_are_named(tmp_path: Path, odd: dict[str, tuple[float, float]], kind: str, text: str) -> None:
    findings = check(tmp_path, odd).findings
    found = [finding for finding in findings if finding.kind == kind]
    assert len(found) == 1, findings
    assert found[0].annotation == 100
    assert found[0].picture.endswith("a.png")
    assert text in found[0].text


def test_people_labelled_twice_are_found(tmp_path: Path) -> None:
    again = {joint: (x + 4, y - 3) for joint, (x, y) in BODY.items()}
    beside = {joint: (x + 60, y) for joint, (x, y) in BODY.items()}
    report = check(tmp_path, BODY, beside, again)
    assert seen(report) == [("duplicate", 102)]
    assert report.findings[0].text == "is the same person as annotation 100"


def test_an_empty_box_is_found(tmp_path: Path) -> None:
    assert seen(check(tmp_path, BODY, box=[300, 200, 0, 50])) == [("empty box", 100)]


def test_joints_are_counted_by_name(tmp_path: Path) -> None:
    report = check(tmp_path, BODY, {joint: (x + 150, y) for joint, (x, y) in BODY.items() if joint != "nose"})
    assert (report.people, report.pictures) == (2, 1)
    assert report.joints["nose"] == 1
    assert report.joints["left_hip"] == 2


def test_pictures_of_another_size_than_the_labels_say_are_found(tmp_path: Path) -> None:
    report = check(tmp_path, BODY, width=480, height=600)
    assert seen(report) == [("picture of another size", None)]
    assert "is 600x480, the labels say 480x600 (turned by its EXIF orientation?)" in report.findings[0].text


def test_a_picture_turned_by_its_exif_orientation_has_the_size_that_training_sees(tmp_path: Path) -> None:
    check(tmp_path, BODY)
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (480, 600)).save(tmp_path / "turned.jpg", exif=exif)
    content = json.loads((tmp_path / "set.json").read_text())
    content["images"][0]["file_name"] = "turned.jpg"
    (tmp_path / "set.json").write_text(json.dumps(content))
    assert check_set(read_set(DataSet(name="s", annotations="set.json", licence="x"), tmp_path)).findings == []


@pytest.fixture
def broken(data: Path, tmp_path: Path) -> Path:
    """The labelled set of two pictures, one of them cut short and the other one missing."""
    (tmp_path / "images").mkdir()
    whole = (data / "images" / "bus.jpg").read_bytes()
    (tmp_path / "images" / "bus.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "people.json").write_bytes((data / "people.json").read_bytes())
    return tmp_path


def test_missing_pictures_and_pictures_that_end_early_are_broken(
    broken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = broken / "new" / "found.json"
    arguments = ["--json", str(output), "--sheet", str(broken / "none.jpg")]  # there is nobody left to draw
    assert pose.main(["data", "check", str(broken / "people.json"), *arguments]) == 1
    shown = capsys.readouterr().out
    assert "people: 5 people in 2 pictures" in shown
    assert "broken pictures: 2" in shown
    assert "zidane.jpg: missing" in shown
    report = json.loads(output.read_text())
    reasons = {Path(path).name: reason for path, reason in report["broken"].items()}
    assert reasons["zidane.jpg"] == "missing"
    assert "truncated" in reasons["bus.jpg"]
    assert report["people"] == 5
    assert report["joints"]["nose"] == 5


def test_a_whole_set_leaves_with_status_0_and_a_sheet(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POSE_DATA", str(data))
    sheet = tmp_path / "people.jpg"
    assert pose.main(["data", "check", "people.json", "--sheet", str(sheet)]) == 0
    assert f"people drawn in {sheet}" in capsys.readouterr().out
    picture = cv2.imread(str(sheet))
    assert picture is not None
    assert picture.shape[1] == 8 * 192
    assert picture.std() > 30


def test_a_pack_is_checked_by_its_crops(data: Path, data_set: DataSet, tmp_path: Path) -> None:
    write_pack(data_set, data, tmp_path / "pack", (64, 48))
    entry = DataSet(name="packed", annotations=str(tmp_path / "pack"), licence="x")
    assert check_set(read_set(entry, tmp_path)).broken == {}  # its pictures are not there
    shard = tmp_path / "pack" / "crops-000000.tar"
    first = read_set(entry, tmp_path).people[0].packed
    assert first is not None
    content = bytearray(shard.read_bytes())
    content[first.offset : first.offset + first.length] = bytes(first.length)
    shard.write_bytes(content)
    report = check_set(read_set(entry, tmp_path))
    assert [Path(path).name for path in report.broken] == ["bus.jpg"]  # others of that picture are whole
    assert f"is damaged: no picture at byte {first.offset}" in next(iter(report.broken.values()))
