"""The JSON is made past pydantic, and must be what pydantic would make."""

import numpy as np
import pytest
from pydantic_core import to_json

from app.result import PoseResult
from app.schemas import ModelName, PoseResponse, to_plain

JOINTS = tuple(f"joint_{i}" for i in range(17))
TIMINGS = {name: 0.0123456 for name in ("decode", "detect", "pose", "queue", "total")}


@pytest.mark.parametrize("count", [0, 1, 50])
def test_plain_objects_are_the_documented_answer(count: int) -> None:
    random = np.random.default_rng(count)

    def numbers(*shape: int) -> np.ndarray:
        return random.uniform(0, 1000, (count, *shape)).astype(np.float32)

    scores = numbers(17) / 1000
    result = PoseResult(800, 600, numbers(4), scores[:, 0], numbers(17, 2), scores, scores[:, 1], TIMINGS)
    text = to_json(to_plain(result, JOINTS, ModelName(name="a", version="1")))
    answer = PoseResponse.model_validate_json(text)
    assert answer.model_dump_json().encode() == text
    assert len(answer.persons) == count
    for person, box, keypoints, certain in zip(
        answer.persons, result.boxes, result.keypoints, result.keypoint_scores, strict=True
    ):
        assert list(person.box) == [round(float(value), 2) for value in box]
        assert [(k.x, k.y) for k in person.keypoints] == [
            (round(float(x), 2), round(float(y), 2)) for x, y in keypoints
        ]
        assert [k.score for k in person.keypoints] == [round(float(score), 4) for score in certain]
    assert answer.timings_ms.decode == 12.35
