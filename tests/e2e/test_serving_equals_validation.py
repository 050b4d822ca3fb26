"""What the server answers is what `pose validate` scores: serving and training cannot differ."""

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from serving import run_server

from app.pipeline import Pipeline
from app.settings import load_settings
from model.package import load_package
from training.config import ConfigError, data_folder
from training.evaluation import Predictions, oks_ap, pck
from training.people import read_people
from training.validation import VALIDATION_SETS, Request, run_validation

TOLERANCE = 0.5  # points
SET = VALIDATION_SETS["coco-val"]


@pytest.fixture(scope="module")
def data() -> Path:
    try:
        return data_folder()
    except ConfigError as error:
        pytest.skip(f"needs the labelled validation pictures: {error}")


@pytest.mark.timeout(600)  # 452 people, twice, with flip test
def test_the_server_scores_what_validation_prints_and_what_the_card_says(data: Path, converted: Path) -> None:
    package = load_package("sdhrnet_w32_coco")
    settings = load_settings({"POSE_CACHE": str(converted)})
    pipeline = Pipeline.load(settings)
    [expected] = run_validation(package, Request(sets=["coco-val"]), pipeline.engine)
    people = read_people(SET, data, package.skeleton.name)
    by_picture: dict[Path, list[int]] = defaultdict(list)
    for index, person in enumerate(people):
        by_picture[person.picture].append(index)
    keypoints, scores = np.zeros((len(people), 17, 2)), np.zeros((len(people), 17))
    with run_server(settings, pipeline) as running:
        for path, indices in by_picture.items():
            boxes = json.dumps([people[index].box.tolist() for index in indices])
            answer = running.client.post(
                "/pose", files={"file": (path.name, path.read_bytes())}, data={"boxes": boxes, "flip_test": "true"}
            )
            assert answer.status_code == 200, answer.text
            persons = answer.json()["persons"]
            assert len(persons) == len(indices)
            for index, person in zip(indices, persons, strict=True):
                keypoints[index] = [(joint["x"], joint["y"]) for joint in person["keypoints"]]
                scores[index] = [joint["score"] for joint in person["keypoints"]]
    served = Predictions(keypoints, scores)
    figures = {
        **oks_ap(data / SET.annotations, people, served, package.skeleton),
        **pck(people, served, package.skeleton),
    }
    # the card's figures are PyTorch's in float32, so they hold the serving engine to it as well
    recorded = next(entry for entry in package.card.evaluation if entry.data == "coco-val")
    for name in ("AP", "AP50", "AP75", "AR", "PCK@0.2"):
        assert figures[name] == pytest.approx(expected.metrics[name], abs=TOLERANCE), name
        assert figures[name] == pytest.approx(recorded.metrics[name], abs=TOLERANCE), name
