"""A calibrated package served: scores are the calibrated ones, and `/model` tells how far to trust them."""

import json
import shutil
from pathlib import Path

import pytest
from serving import Running, run_server

from app.service import load
from app.settings import Settings
from model.skeletons import COCO

CALIBRATION = {
    "method": "isotonic", "table": {joint: [0.0, 0.5] for joint in COCO.joints}, "data": "a-set", "flip_test": True,
    "pictures": 10, "joints": 500, "bins": 15, "error_before": 0.1, "error_after": 0.02,
}  # fmt: skip


def test_served_scores_are_the_calibrated_ones(
    server: Running, settings: Settings, pose_package: Path, tmp_path: Path, pictures: dict[str, bytes]
) -> None:
    folder = Path(shutil.copytree(pose_package, tmp_path / "calibrated"))
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps({**card, "calibration": CALIBRATION}))
    own = settings.model_copy(update={"model": str(folder), "keypoint_score": 0.0})
    with run_server(own, load(own)) as calibrated:
        assert calibrated.client.get("/model").json()["calibration"] == CALIBRATION
        [person] = calibrated.pose(pictures["bus"]).json()["persons"]
    assert server.client.get("/model").json()["calibration"] is None
    [plain] = server.pose(pictures["bus"], params={"keypoint_score": 0}).json()["persons"]
    for mine, raw in zip(person["keypoints"], plain["keypoints"], strict=True):
        assert (mine["x"], mine["y"]) == (raw["x"], raw["y"])
        assert mine["score"] == pytest.approx(raw["score"] / 2, abs=1e-4)
    assert person["score"] == pytest.approx(plain["score"] / 2, abs=1e-4)
    assert plain["score"] > 0.01
