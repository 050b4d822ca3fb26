"""The person detector, trained for a few steps on two pictures, from the bundled one on, and published."""

import json
from pathlib import Path

import pytest
import torch

import pose
from model.errors import PackageError
from model.package import BUNDLED, load_package
from model.person_detector import CARD, NETWORK, WEIGHTS, PersonDetector
from training import box_scores
from training.detector import DetectorConfig, publish_detector, starting_weights, train_detector

BUNDLED_DETECTOR = BUNDLED / "person_yolo26n"


@pytest.fixture(scope="module")
def root(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder as the detector's training and its choice of a score expect it."""
    root = tmp_path_factory.mktemp("detector")
    content = json.loads((data / "people.json").read_text())
    for folder in ("coco", "detect"):
        (root / folder).mkdir()
    (root / "coco" / "images").symlink_to((data / "images").resolve())
    (root / "coco" / "person_keypoints_val.json").write_text(json.dumps(content))
    sizes = {"bus.jpg": (810, 1080), "zidane.jpg": (1280, 720)}
    for image in content["images"]:
        width, height = sizes[image["file_name"]]
        image |= {"file_name": f"coco/images/{image['file_name']}", "width": width, "height": height, "source": "coco"}
    for split in ("train", "val"):
        (root / "detect" / f"person_boxes_{split}.json").write_text(json.dumps(content))
    return root


def test_training_goes_on_from_a_package_and_is_published_with_a_score_chosen_end_to_end(
    root: Path, tmp_path: Path
) -> None:
    run = train_detector(
        DetectorConfig(data=root, run=tmp_path / "run", init=BUNDLED_DETECTOR, image_size=128, epochs=1, batch=2)
    )
    package = publish_detector(run, tmp_path / "package", load_package("sdhrnet_w32_coco"), size=192)
    card = json.loads((package / CARD).read_text())
    assert card["started_from"] == json.loads((BUNDLED_DETECTOR / CARD).read_text())["sha256"]
    assert (card["samples_seen"], card["input_size"], card["recipe"]["image_size"]) == (2, 192, 128)
    curve = card["end_to_end"]["AP_by_score_threshold"]
    assert [float(least) for least in curve] == list(box_scores.CANDIDATES)
    detector = PersonDetector.from_package(package)
    assert (
        detector.least_score
        == card["score_threshold"]
        == box_scores.least_score({float(k): v for k, v in curve.items()})
    )
    # one step from the bundled weights: still a detector, which two steps from random ones are not
    assert max(curve.values()) > 0


def test_the_head_that_a_package_leaves_out_starts_as_a_copy() -> None:
    state = starting_weights(BUNDLED_DETECTOR)
    pairs = [(key, key.replace(".cv", ".one2one_cv")) for key in state if ".23.cv" in key]
    assert len(pairs) > 50
    assert all(torch.equal(state[many], state[one]) for many, one in pairs)


def test_a_damaged_package_is_no_start(tmp_path: Path) -> None:
    for name in (WEIGHTS, CARD, NETWORK):
        (tmp_path / name).write_bytes((BUNDLED_DETECTOR / name).read_bytes())
    (tmp_path / WEIGHTS).write_bytes(b"half")
    with pytest.raises(PackageError, match="copy it anew"):
        starting_weights(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["--size", "100"], "image_size: Input should be a multiple of 32 (100)", id="size"),
        pytest.param(["--init", "nowhere"], "init: Path does not point to a directory (nowhere)", id="start"),
        pytest.param(["--minutes", "0"], "minutes: Input should be greater than 0", id="no time"),
        pytest.param(["--publish"], "holds no run of `pose train-detector`", id="no run"),
    ],
)
def test_mistakes_are_one_line(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("POSE_DATA", str(root))
    assert pose.main(["train-detector", "-o", str(tmp_path / "run"), *arguments]) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


def test_the_least_score_gives_up_a_twentieth_of_the_ap_and_no_more() -> None:
    assert box_scores.least_score({0.02: 19.8, 0.1: 20.0, 0.2: 19.1, 0.3: 18.9}) == 0.2
