"""MPII: the official .mat and HRNet's json, made here from two pictures, in pixels counted from 1 as MATLAB does."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from model.crop import Region
from model.skeletons import MPII
from training.config import ConfigError, DataSet
from training.people import keep_crops, read_people

BODIES = {"bus.jpg": [(50, 400, 195, 503), (670, 380, 139, 500)], "zidane.jpg": [(748, 40, 400, 680)]}
EMPTY = np.zeros((0, 0))


def structs(*items: dict[str, Any]) -> np.ndarray:
    """MATLAB's struct array: every struct has every field, those it lacks are empty matrices."""
    names = list(dict.fromkeys(name for item in items for name in item))
    array = np.empty((1, len(items)), [(name, object) for name in names])
    for place, item in enumerate(items):
        for name in names:
            array[name][0, place] = item.get(name, EMPTY)
    return array


def joints(box: tuple[int, int, int, int], without: tuple[int, ...] = ()) -> dict[int, tuple[float, float]]:
    """Sixteen places in a box, in pixels from 1."""
    x, y, w, h = box
    return {i: (x + w * (i % 4 + 1) / 5, y + h * (i // 4 + 1) / 5) for i in range(16) if i not in without}


def rectangle(box: tuple[int, int, int, int], *without: int) -> dict[str, Any]:
    x, y, w, h = box
    points = [
        {"x": px, "y": py, "id": number, "is_visible": EMPTY if number in (8, 9) else 1}
        for number, (px, py) in joints(box, without).items()
    ]
    return {
        "x1": x, "y1": y, "x2": x + 30, "y2": y + 40, "annopoints": structs({"point": structs(*points)}),
        "scale": h / 200, "objpos": structs({"x": x + w / 2, "y": y + h / 2}),
    }  # fmt: skip


def write_mat(folder: Path) -> DataSet:
    """Two training pictures, one with several people, one with a single one; then what real files have besides."""
    bus, zidane = BODIES["bus.jpg"], BODIES["zidane.jpg"]
    no_points = {key: value for key, value in rectangle(bus[0]).items() if key in ("x1", "y1", "x2", "y2")}
    no_place = {key: value for key, value in rectangle(bus[0]).items() if key not in ("scale", "objpos")}
    pictures = [
        {"image": structs({"name": "bus.jpg"}), "annorect": structs(*(rectangle(box) for box in bus), no_points)},
        {"image": structs({"name": "zidane.jpg"}), "annorect": structs(rectangle(zidane[0], 0, 15))},
        {"image": structs({"name": "nobody.jpg"}), "annorect": EMPTY},
        {"image": structs({"name": "unplaced.jpg"}), "annorect": structs(no_place)},
        {"image": structs({"name": "test.jpg"}), "annorect": structs(rectangle(zidane[0]))},
    ]
    release = structs({"annolist": structs(*pictures), "img_train": np.array([[1, 1, 1, 1, 0]])})
    savemat(folder / "mpii.mat", {"RELEASE": release})
    return DataSet(name="mpii", annotations=str(folder / "mpii.mat"), images="images", licence="test")


def write_hrnet(folder: Path, **changes: Any) -> DataSet:
    entries = []
    for name, boxes in BODIES.items():
        for x, y, w, h in boxes:
            places = joints((x, y, w, h), (0,))
            entries.append(
                {
                    "image": name, "center": [x + w / 2, y + h / 2], "scale": h / 200,
                    "joints": [places.get(i, (0.0, 0.0)) for i in range(16)],
                    "joints_vis": [int(i in places) for i in range(16)], **changes,
                }
            )  # fmt: skip
    (folder / "valid.json").write_text(json.dumps(entries))
    return DataSet(name="valid", annotations=str(folder / "valid.json"), images="images", licence="test")


def test_the_mat_gives_everyone_with_joints_and_a_place_in_training_pictures(data: Path, tmp_path: Path) -> None:
    people = read_people(write_mat(tmp_path), data, "mpii16")
    assert [(person.picture.name, person.annotation, person.image) for person in people] == [
        ("bus.jpg", 1001, 1), ("bus.jpg", 1002, 1), ("zidane.jpg", 2001, 2),
    ]  # fmt: skip
    for person, box in zip(people, [*BODIES["bus.jpg"], *BODIES["zidane.jpg"]], strict=True):
        expected = np.array(list(joints(box).values())) - 1
        labelled = person.weights > 0
        assert person.keypoints[labelled] == pytest.approx(expected[labelled])
        assert person.head_size == pytest.approx(0.6 * 50)  # a head of 30 x 40
    assert people[0].weights.tolist() == [1] * 16  # joints without is_visible count too
    assert people[2].weights.tolist() == [0, *[1] * 14, 0]


def test_the_mat_and_hrnets_json_agree(data: Path, tmp_path: Path) -> None:
    first = read_people(write_mat(tmp_path), data, "mpii16")
    second = read_people(write_hrnet(tmp_path), data, "mpii16")
    assert [person.annotation for person in second] == [0, 1, 2]
    for mine, theirs in zip(first, second, strict=True):
        both = (mine.weights > 0) & (theirs.weights > 0)
        assert mine.picture == theirs.picture
        assert mine.box == pytest.approx(theirs.box)
        assert mine.keypoints[both] == pytest.approx(theirs.keypoints[both])
    assert all(math.isnan(person.head_size) for person in second)


def test_the_crop_shows_the_region_of_hrnets(data: Path, tmp_path: Path) -> None:
    """HRNet, worked by hand for centre 594, 257 and scale 3.021: the centre goes 15 x 3.021 down and 1 up and left,
    the crop is 1.25 x 3.021 x 200 pixels wide."""
    person = read_people(write_hrnet(tmp_path, center=[594.0, 257.0], scale=3.021), data, "mpii16")[0]
    region = Region.around(person.box, (256, 256))
    assert region.center == pytest.approx([593.0, 301.315])
    assert region.extent == pytest.approx([755.25, 755.25])


def test_joints_come_onto_another_skeleton_by_name(data: Path, tmp_path: Path) -> None:
    person = read_people(write_hrnet(tmp_path), data, "lsp14")[0]
    expected = joints(BODIES["bus.jpg"][0])[MPII.joints.index("head_top")]
    assert person.keypoints[13] == pytest.approx(np.array(expected) - 1)


def test_crops_can_be_cut(data: Path, tmp_path: Path) -> None:
    people = read_people(write_mat(tmp_path), data, "mpii16")
    assert all(crop.pixels.std() > 10 for crop in keep_crops(people, (64, 64)))


@pytest.mark.parametrize("name", ["gt_valid.mat", "mpii_gt_valid.mat"])
def test_head_sizes_come_from_hrnets_mat_beside_the_json(data: Path, tmp_path: Path, name: str) -> None:
    corners = np.zeros((2, 2, 3))
    corners[1] = [[30, 60, 3], [40, 80, 4]]  # x2 - x1 and y2 - y1 of three people
    savemat(tmp_path / name, {"headboxes_src": corners})
    people = read_people(write_hrnet(tmp_path), data, "mpii16")
    assert [person.head_size for person in people] == pytest.approx([30, 60, 3])


def test_head_sizes_of_other_people_are_refused(data: Path, tmp_path: Path) -> None:
    savemat(tmp_path / "gt_valid.mat", {"headboxes_src": np.zeros((2, 2, 5))})
    with pytest.raises(ConfigError, match=r"has 5 head rectangles, valid\.json 3 people"):
        read_people(write_hrnet(tmp_path), data, "mpii16")


def test_entries_that_do_not_fit_are_named(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="entry 0 does not fit HRNet's MPII format"):
        read_people(write_hrnet(tmp_path, joints=[[1, 2]]), data, "mpii16")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(None, "pose data fetch mpii", id="no file"),
        pytest.param(b"no matlab", "is not MPII's annotation file", id="other bytes"),
        pytest.param({"OTHER": 1.0}, "is not MPII's annotation file", id="another .mat"),
        pytest.param({"RELEASE": structs({"version": "2"})}, "is not MPII's annotation file", id="another release"),
    ],
)
def test_unreadable_mats_are_named(data: Path, tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "mpii.mat"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        savemat(path, content)
    with pytest.raises(ConfigError, match=message):
        read_people(DataSet(name="m", annotations=str(path), images="images", licence="x"), data, "mpii16")
