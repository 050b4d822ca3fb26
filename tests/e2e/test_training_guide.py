"""The training guide's ten commands, exactly as it has them, on two pictures: from labels to a running service."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

GUIDE = Path(__file__).parents[2] / "docs" / "training.md"
BOXES = {
    "bus.jpg": [(50, 400, 195, 503), (223, 405, 122, 455), (670, 380, 139, 500)],
    "zidane.jpg": [(748, 40, 400, 680)],
}
JOINTS = ("nose", "left_shoulder", "right_shoulder", "left_hip", "right_hip", "left_knee", "right_knee", "tail")
PLACES = ((0.5, 0.1), (0.65, 0.22), (0.35, 0.22), (0.6, 0.53), (0.4, 0.53), (0.6, 0.73), (0.4, 0.73), (0.5, 0.6))


def blocks(language: str) -> str:
    """The first block of that language in the guide's section of ten commands."""
    section = GUIDE.read_text().split("## Your own data, in ten commands", 1)[1]
    found = re.search(rf"```{language}\n(.*?)```", section, re.DOTALL)
    assert found is not None
    return found[1]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What the guide starts from: labels, pictures, the configuration, a photograph."""
    spec = find_spec("ultralytics")
    assert spec is not None
    assert spec.origin is not None
    assets = Path(spec.origin).parent / "assets"
    (tmp_path / "mine" / "images").mkdir(parents=True)
    images, people = [], []
    for number, (name, boxes) in enumerate(BOXES.items(), 1):
        shutil.copy(assets / name, tmp_path / "mine" / "images" / name)
        images.append({"id": number, "file_name": name})
        for x, y, w, h in boxes:
            joints = [value for px, py in PLACES for value in (x + px * w, y + py * h, 2)]
            people.append(
                {
                    "id": len(people) + 1, "image_id": number, "category_id": 1, "bbox": [x, y, w, h],
                    "area": 0.53 * w * h, "num_keypoints": len(JOINTS), "keypoints": joints, "iscrowd": 0,
                }
            )  # fmt: skip
    category = {"id": 1, "name": "person", "keypoints": list(JOINTS)}
    labels = json.dumps({"images": images, "annotations": people, "categories": [category]})
    for name in ("people.json", "val.json"):
        (tmp_path / "mine" / name).write_text(labels)
    (tmp_path / "mine.yaml").write_text(blocks("yaml"))
    shutil.copy(assets / "bus.jpg", tmp_path / "photo.jpg")
    return tmp_path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.timeout(600)
def test_the_ten_commands_lead_from_labels_to_a_running_service(folder: Path, converted: Path) -> None:
    commands = blocks("bash").strip().splitlines()
    assert len(commands) == 10
    port = str(free_port())
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("POSE_")},
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "POSE_DATA": str(folder), "POSE_PORT": port, "POSE_CACHE": str(converted), "POSE_ENGINE": "torch",
    }  # fmt: skip
    script = "set -ex -o pipefail\n" + "\n".join(commands).replace("localhost:8000", f"localhost:{port}") + "\n"
    shell = subprocess.Popen(
        ["bash", "-c", script + "kill %1; wait %1"],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8",
        start_new_session=True,
    )  # fmt: skip
    try:
        out, err = shell.communicate(timeout=550)
    finally:
        if shell.poll() is None:
            os.killpg(shell.pid, signal.SIGKILL)
    assert shell.returncode == 0, err[-3000:]
    answer = json.loads(out.strip().splitlines()[-1])
    assert answer["model"]["name"] == "mine"
    assert answer["persons"]
    assert len(answer["persons"][0]["keypoints"]) == 17
    for made in ("people.jpg", "seen.jpg", "scores.png", "out/photo.jpg", "out/photo.json", "runs/mine/results.png"):
        assert (folder / made).stat().st_size > 1000, made
    assert list((folder / "worst").glob("*.jpg"))
    card = json.loads((folder / "packages" / "mine" / "card.json").read_text())
    assert card["data"][0]["licence"] == "where the pictures come from"
