"""MPII from end to end: its labels in, a package of sixteen joints out, scored by PCKh and served."""

from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat
from test_mpii import write_hrnet, write_mat

from app.pipeline import Pipeline
from app.settings import Settings
from model.package import load_package
from model.skeletons import MPII
from training.config import Phase, TrainConfig
from training.loop import train
from training.people import read_picture
from training.publishing import publish_run

CORNERS = np.zeros((2, 2, 3))  # corner, axis, person: heads of 30 x 40 pixels
CORNERS[1] = [[30, 30, 30], [40, 40, 40]]


@pytest.fixture
def mpii(config: TrainConfig, pose_package: Path, tmp_path: Path) -> TrainConfig:
    """Trains on the `.mat`, is scored on HRNet's json, and starts from a package of COCO's joints."""
    savemat(tmp_path / "gt_valid.mat", {"headboxes_src": CORNERS})
    return config.model_copy(
        update={
            "name": "mpii_small",
            "skeleton": "mpii16",
            "init": str(pose_package),
            "data": [write_mat(tmp_path)],
            "validation": write_hrnet(tmp_path),
            "phases": [Phase(input_size=(64, 64), samples=8, batch=4)],
        }
    )


def test_mpii_labels_become_a_package_that_is_served(mpii: TrainConfig, data: Path, tmp_path: Path) -> None:
    figures = train(mpii, data, tmp_path / "run")
    assert 0 <= figures["PCKh@0.5 mean"] <= 100
    folder = publish_run(tmp_path / "run", data, tmp_path / "packages")
    card = load_package(str(folder)).card
    [entry] = card.evaluation
    assert (card.skeleton, card.input_size, entry.people) == ("mpii16", (64, 64), 3)
    groups = [name.removeprefix("PCKh@0.5 ") for name in entry.metrics if name.startswith("PCKh@0.5")]
    assert groups == ["head", "shoulder", "elbow", "wrist", "hip", "knee", "ankle", "mean"]
    settings = Settings(model=str(folder), detector="none", engine="torch", device="cpu", threads=1)
    result = Pipeline.load(settings).predict(read_picture(data / "images" / "zidane.jpg"))
    assert result.keypoints.shape == (1, len(MPII), 2)
