"""A small labelled set made from the pictures that the ultralytics package carries: no download, no data folder."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from model.skeletons import COCO
from training.config import DataSet, TrainConfig

# boxes (x, y, width, height) of the people in bus.jpg and zidane.jpg, and where their joints roughly are inside them
PEOPLE = {
    "bus.jpg": [(50, 400, 195, 503), (223, 405, 122, 455), (670, 380, 139, 500)],
    "zidane.jpg": [(748, 40, 400, 680), (110, 200, 560, 520)],
}
PLACES = [
    (0.5, 0.1), (0.53, 0.08), (0.47, 0.08), (0.56, 0.1), (0.44, 0.1), (0.65, 0.22), (0.35, 0.22), (0.7, 0.37),
    (0.3, 0.37), (0.7, 0.5), (0.3, 0.5), (0.6, 0.53), (0.4, 0.53), (0.6, 0.73), (0.4, 0.73), (0.6, 0.93), (0.4, 0.93),
]  # fmt: skip


def assets() -> Path:
    spec = find_spec("ultralytics")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "assets"


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with one COCO-format set, `people.json`."""
    root = tmp_path_factory.mktemp("data")
    (root / "images").symlink_to(assets())
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (name, boxes) in enumerate(PEOPLE.items()):
        images.append({"id": number, "file_name": name, "width": 810, "height": 1080})
        for x, y, w, h in boxes:
            joints = [value for px, py in PLACES for value in (x + px * w, y + py * h, 2)]
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": number, "category_id": 1, "iscrowd": 0,
                    "bbox": [x, y, w, h], "area": 0.53 * w * h, "num_keypoints": 17, "keypoints": joints,
                }
            )  # fmt: skip
    category = {"id": 1, "name": "person", "keypoints": list(COCO.joints)}
    content = {"images": images, "annotations": annotations, "categories": [category]}
    (root / "people.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="session")
def data_set() -> DataSet:
    return DataSet(name="people", annotations="people.json", images="images", licence="test")


@pytest.fixture
def config(data_set: DataSet) -> TrainConfig:
    """Twelve steps of a narrow network on crops of 64x48."""
    return TrainConfig.model_validate(
        {
            "name": "tiny",
            "network": "sdhrnet_w16",
            "data": [data_set],
            "validation": data_set,
            "phases": [
                {"input_size": (64, 48), "samples": 32, "batch": 4},
                {"input_size": (96, 72), "samples": 16, "batch": 4},
            ],
            "warmup_samples": 8,
            "decay_from": 0.5,
            "learning_rate": 1e-3,
            "precision": "float32",
            "ema": 0.5,
            "threads": 1,
            "validate_every": 1000,
        }
    )
