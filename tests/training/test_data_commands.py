"""`pose data`: naming a set, packing it, and pictures of what the network sees."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

import pose
from model.skeletons import COCO
from training.config import ConfigError, DataSet, TrainConfig
from training.data_commands import find_set
from training.distributed import Workers
from training.loader import Crops, Draw
from training.people import keep_crops, read_people
from training.sheets import draw_joints
from training.showing import write_training_sheet


@pytest.fixture
def config_file(config: TrainConfig, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POSE_DATA", str(data))
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(json.loads(config.model_dump_json())))
    return path


def test_a_set_of_a_configuration_is_named_by_both(config_file: Path, data: Path, data_set: DataSet) -> None:
    assert find_set(f"{config_file}:people", None) == (data_set, data.resolve())
    with pytest.raises(ConfigError, match="has no set 'humans'; it has people"):
        find_set(f"{config_file}:humans", None)
    with pytest.raises(ConfigError, match="the configuration says where the pictures are"):
        find_set(f"{config_file}:people", Path("elsewhere"))


def test_a_file_is_looked_for_here_and_in_the_data_folder(
    data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("POSE_DATA", str(data))
    monkeypatch.chdir(tmp_path)
    entry, root = find_set("people.json", None, "mine")
    assert len(read_people(entry, root, "coco17")) == 5
    assert (entry.name, entry.licence) == ("people", "mine")
    assert entry.images.endswith("/images")
    with pytest.raises(ConfigError, match=r"no set 'nobody\.json'"):
        find_set("nobody.json", None)
    (tmp_path / "people.json").write_text("{}")  # this one is nearer
    with pytest.raises(ConfigError, match=r"no picture folder .*images: say with --images"):
        find_set("people.json", None)
    entry, _ = find_set("people.json", Path("images"))
    assert entry.annotations == str(tmp_path / "people.json")
    assert entry.images == str(data.resolve() / "images")


def test_the_commands_pack_a_set_and_say_its_size(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "packs" / "people"
    assert pose.main(["data", "pack", f"{config_file}:people", "-o", str(folder), "--size", "64x48"]) == 0
    shown = capsys.readouterr().out
    size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    assert f"packed 5 people into 1 shard, {size:.1f} MB: {folder}" in shown
    entry, root = find_set(str(folder), None)
    assert len(read_people(entry, root, "coco17")) == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["check", "nothing.json"], "no set 'nothing.json'", id="no set"),
        pytest.param(["pack", "people.json", "-o", "out", "--size", "huge"], "must be HEIGHTxWIDTH", id="no size"),
        pytest.param(["show", "no_config", "-o", "a.jpg"], "no configuration 'no_config'", id="no configuration"),
    ],
)
def test_mistakes_are_one_line(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    monkeypatch.setenv("POSE_DATA", str(data))
    assert pose.main(["data", *arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("pose data: ")
    assert message in error


def test_the_network_is_shown_what_it_sees_phase_by_phase(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet = tmp_path / "seen.png"
    assert pose.main(["data", "show", str(config_file), "-o", str(sheet), "--people", "4"]) == 0
    assert f"drawn {sheet}: the first crops of each phase, out of 5 people" in capsys.readouterr().out
    picture = cv2.imread(str(sheet))
    assert picture is not None
    assert picture.shape[1] == 8 * 192  # four crops, each beside its targets
    rows = picture.shape[0] // 2  # two phases, one row each
    crops, targets = picture[30:286, :192], picture[30:286, 192:384]
    assert crops.std() > 20
    red = (targets[..., 2].astype(int) - targets[..., 0] > 100).mean()
    assert 0.01 < red < 0.8  # the targets glow red on grey
    assert (picture[:rows] != picture[rows : 2 * rows]).any()


def test_the_first_tile_is_the_first_crop_of_a_run(config: TrainConfig, data: Path, tmp_path: Path) -> None:
    config = config.model_copy(update={"seed": 2})
    people = read_people(config.data[0], data, "coco17")
    size = config.phases[0].input_size
    person, number = next(iter(Draw(np.ones(5), 4, config.seed, 0, Workers())))[0]
    crops = Crops(people, keep_crops(people, config.phases[1].input_size), size, COCO, config.augmentation, config.seed)
    crop, keypoints, weights, _ = crops[person, number]
    tile = draw_joints(cv2.resize(crop, (192, 256), interpolation=cv2.INTER_CUBIC), keypoints * 4 + 1.5, weights, COCO)
    write_training_sheet(tmp_path / "seen.png", config, people, 4)
    assert np.array_equal(cv2.imread(str(tmp_path / "seen.png"), cv2.IMREAD_COLOR_RGB)[30:286, :192], tile)


def test_the_sheet_depends_on_the_seed_alone(config: TrainConfig, data: Path, tmp_path: Path) -> None:
    people = read_people(config.data[0], data, "coco17")
    sheets = []
    for number, seed in enumerate((1, 1, 2)):
        path = tmp_path / f"{number}.png"
        write_training_sheet(path, config.model_copy(update={"seed": seed}), people, 4)
        sheets.append(cv2.imread(str(path)))
    assert np.array_equal(sheets[0], sheets[1])
    assert not np.array_equal(sheets[0], sheets[2])


def test_a_sheet_of_nobody_or_of_no_picture_type_is_refused(config: TrainConfig, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nobody to train on is left"):
        write_training_sheet(tmp_path / "a.jpg", config, [])
    people = read_people(config.data[0], data, "coco17")
    with pytest.raises(ConfigError, match=r"must end in \.jpg or \.png"):
        write_training_sheet(tmp_path / "a.txt", config, people, 4)
    assert list(tmp_path.iterdir()) == []
