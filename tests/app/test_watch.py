"""When a changed package folder is taken for a new package."""

import json
import shutil
from pathlib import Path

import pytest
from serving import publish

from app.reload import PATIENCE, Watch
from model.package import CARD, WEIGHTS, hash_file


@pytest.fixture
def folder(pose_package: Path, tmp_path: Path) -> Path:
    return shutil.copytree(pose_package, tmp_path / "package")


@pytest.fixture(scope="module")
def other(pose_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another version: one more byte in the weights' header, so that the checksum is another, and a card that fits."""
    folder = shutil.copytree(pose_package, tmp_path_factory.mktemp("other") / "package")
    weights = (folder / WEIGHTS).read_bytes()
    length = int.from_bytes(weights[:8], "little")
    padded = weights[8 : 8 + length] + b" " * 8
    (folder / WEIGHTS).write_bytes(len(padded).to_bytes(8, "little") + padded + weights[8 + length :])
    card = json.loads((folder / CARD).read_text())
    (folder / CARD).write_text(json.dumps(card | {"version": "2", "sha256": hash_file(folder / WEIGHTS)}))
    return folder


def test_a_folder_that_stays_as_it_is_is_never_due(folder: Path) -> None:
    watch = Watch(str(folder))
    assert [watch.look(second) for second in range(30)] == [False] * 30


def test_a_replaced_folder_is_due_once_and_only_when_it_has_settled(folder: Path, other: Path) -> None:
    watch = Watch(str(folder))
    publish(other, folder)
    assert [watch.look(0), watch.look(1)] == [False, True]
    watch.tried()
    assert [watch.look(second) for second in range(2, 30)] == [False] * 28


def test_the_same_package_written_again_is_due_too(folder: Path, pose_package: Path) -> None:
    watch = Watch(str(folder))
    publish(pose_package, folder)  # whether it is another one is the reload's affair
    assert [watch.look(0), watch.look(1)] == [False, True]


def test_a_folder_that_is_away_for_a_moment_is_no_alarm(folder: Path) -> None:
    watch = Watch(str(folder))
    folder.rename(folder.with_name("aside"))
    assert [watch.look(0), watch.look(1)] == [False, False]
    folder.with_name("aside").rename(folder)
    assert [watch.look(second) for second in range(2, 30)] == [False] * 28


@pytest.mark.parametrize("order", [(CARD, WEIGHTS), (WEIGHTS, CARD)], ids=["card first", "weights first"])
def test_files_copied_one_by_one_are_due_once_both_are_there(folder: Path, other: Path, order: tuple[str, str]) -> None:
    watch = Watch(str(folder))
    shutil.copy(other / order[0], folder)
    assert [watch.look(second) for second in range(int(PATIENCE))] == [False] * int(PATIENCE)
    shutil.copy(other / order[1], folder)
    assert [watch.look(PATIENCE), watch.look(PATIENCE + 1)] == [False, True]


def test_a_file_that_grows_is_waited_for(folder: Path, other: Path) -> None:
    watch = Watch(str(folder))
    weights = (other / WEIGHTS).read_bytes()
    shutil.copy(other / CARD, folder)
    with (folder / WEIGHTS).open("wb") as file:
        for second in range(30):  # longer than its patience with a file that stays incomplete
            file.write(weights[second * len(weights) // 30 : (second + 1) * len(weights) // 30])
            file.flush()
            assert not watch.look(second)
    assert [watch.look(30), watch.look(31)] == [True, True]


@pytest.mark.parametrize("damage", ["missing", "cut short", "no card"])
def test_a_package_that_stays_incomplete_is_due_once_after_a_while(folder: Path, damage: str) -> None:
    watch = Watch(str(folder))
    if damage == "missing":
        (folder / WEIGHTS).unlink()
    elif damage == "cut short":
        (folder / WEIGHTS).write_bytes(b"")
    else:
        (folder / CARD).write_text("{")
    assert [watch.look(second) for second in range(int(PATIENCE))] == [False] * int(PATIENCE)
    assert watch.look(PATIENCE)
    watch.tried()
    assert [watch.look(second) for second in range(11, 40)] == [False] * 29
