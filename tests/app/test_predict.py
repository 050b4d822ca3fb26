"""`pose predict`: files in, annotated pictures and JSON out, nothing lost."""

import json
from pathlib import Path

import pytest

from app.images import decode
from app.predict import predict_files
from app.settings import Settings
from model.errors import UserError


def run(settings: Settings, *pictures: Path, output: Path) -> int:
    return predict_files(settings, pictures, output, flip_test=False, max_persons=None)


def test_every_picture_becomes_json_and_an_annotated_picture(
    settings: Settings, pictures: dict[str, bytes], tmp_path: Path
) -> None:
    files = [tmp_path / f"{name}.jpg" for name in pictures]
    for file, data in zip(files, pictures.values(), strict=True):
        file.write_bytes(data)
    assert run(settings, *files, output=tmp_path / "out") == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "bus.jpg",
        "bus.json",
        "zidane.jpg",
        "zidane.json",
    ]
    answer = json.loads((tmp_path / "out" / "bus.json").read_text())
    assert answer["image"] == {"width": 810, "height": 1080}
    assert len(answer["persons"][0]["keypoints"]) == 17
    drawn = decode((tmp_path / "out" / "bus.jpg").read_bytes(), settings.max_pixels)
    assert drawn.shape == (1080, 810, 3)
    assert (drawn != decode(pictures["bus"], settings.max_pixels)).any()


def test_a_file_that_is_no_picture_is_left_out_and_the_others_are_done(
    settings: Settings, pictures: dict[str, bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "good.jpg").write_bytes(pictures["bus"])
    (tmp_path / "bad.jpg").write_text("no picture")
    bad = [tmp_path / "bad.jpg", tmp_path / "missing.jpg"]
    assert run(settings, *bad, tmp_path / "good.jpg", output=tmp_path / "out") == 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["good.jpg", "good.json"]
    for path in bad:
        assert f"{path} is left out" in caplog.text


def test_two_pictures_of_one_name_are_refused_before_any_work(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"would both become .*a\.jpg"):
        run(settings, tmp_path / "x" / "a.jpg", tmp_path / "y" / "a.png", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_picture_is_never_written_over(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="choose another output folder"):
        run(settings, tmp_path / "a.jpg", output=tmp_path)
