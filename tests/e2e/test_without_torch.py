"""An installation for serving on a CPU: networks that are converted already need neither PyTorch nor ultralytics."""

import json
import os
import subprocess
import sys
from pathlib import Path

ABSENT = ("torch", "torchvision", "ultralytics", "scipy", "matplotlib", "yaml", "pycocotools", "httpx")
SCRIPT = f"""
import sys
for name in {ABSENT!r}:
    sys.modules[name] = None  # as if it were not installed
import pose
sys.exit(pose.main(sys.argv[1:]))
"""


def run(*arguments: str, cache: Path) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("POSE_")}
    environment |= {"POSE_CACHE": str(cache), "POSE_DEVICE": "cpu"}
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], env=environment, capture_output=True, encoding="utf-8", timeout=200
    )


def test_converted_networks_serve(converted: Path, tmp_path: Path, pictures: dict[str, bytes]) -> None:
    (tmp_path / "bus.jpg").write_bytes(pictures["bus"])
    environment = {**os.environ, "POSE_CACHE": str(converted), "POSE_DEVICE": "cpu"}
    subprocess.run([sys.executable, "-m", "pose", "prepare"], env=environment, check=True, timeout=200)
    done = run("predict", str(tmp_path / "bus.jpg"), "-o", str(tmp_path / "out"), cache=converted)
    assert done.returncode == 0, done.stderr
    persons = json.loads((tmp_path / "out" / "bus.json").read_text())["persons"]
    assert len(persons) >= 3
    assert all(len(person["keypoints"]) == 17 for person in persons)


def test_a_network_that_is_not_converted_says_what_to_do(tmp_path: Path) -> None:
    done = run("prepare", cache=tmp_path)
    assert done.returncode == 2
    assert "convert it where PyTorch is (`pose prepare`), and bring the cache folder" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_command_that_needs_more_says_so(tmp_path: Path) -> None:
    done = run("train", "shared_small", "-o", str(tmp_path), cache=tmp_path)
    assert done.returncode == 2
    assert "this installation can serve, but not do that" in done.stderr
