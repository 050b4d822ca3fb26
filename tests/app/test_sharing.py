"""The steps for many requests at once, without a server."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from app.commons import Commons
from app.detector import Boxes
from app.images import Picture, decode
from app.metrics import Metrics
from app.pipeline import Crop, Joints, Pipeline
from app.schemas import Options
from app.settings import Settings
from app.sharing import SharedPipeline

BOXES = [(20.0 * i, 10.0 * i, 120.0 + 20 * i, 300.0 + 10 * i) for i in range(20)]


class Watched(Pipeline):
    """A pipeline whose cutting of a part is watched, and that tells when the network has begun."""

    def __init__(self, pipeline: Pipeline, before_cut: Callable[["Watched", int], None]) -> None:
        settings = Settings.model_validate(pipeline.settings.model_dump() | {"decode_threads": 1})
        super().__init__(settings, pipeline.package, pipeline.engine, pipeline.runtime, pipeline.choice)
        self.before_cut = before_cut
        self.begun = threading.Event()
        self.batches: list[int] = []

    def cut(self, picture: Picture, boxes: Boxes, options: Options) -> tuple[list[Crop], np.ndarray]:
        self.before_cut(self, [box[0] for box in BOXES].index(boxes[0][0]))
        return super().cut(picture, boxes, options)

    def pose(self, crops: list[Crop], alone: bool = True) -> list[Joints]:
        self.begun.set()
        self.batches.append(len(crops))
        return super().pose(crops, alone)


@contextmanager
def shared(pipeline: Pipeline) -> Iterator[SharedPipeline]:
    metrics = Metrics()
    commons = Commons(pipeline, metrics, lambda _: None)
    sharing = SharedPipeline(pipeline, commons, metrics, lambda _: None)
    yield sharing
    commons.close()
    sharing.close()


def test_the_network_begins_before_all_people_are_cut_and_they_stay_in_order(
    pipeline: Pipeline, pictures: dict[str, bytes]
) -> None:
    cuts: list[int] = []

    def wait_for_the_network(watched: Watched, first: int) -> None:
        cuts.append(first)
        assert first == 0 or watched.begun.wait(60)

    watched = Watched(pipeline, wait_for_the_network)
    options = Options(boxes=BOXES)
    with shared(watched) as sharing:
        answer = asyncio.run(sharing.answer(pictures["bus"], options, 120, None))
    expected = pipeline.predict(decode(pictures["bus"], 10**7), options)
    assert cuts == [0, 8, 16]
    assert sum(watched.batches) == 20
    np.testing.assert_allclose(answer.result.keypoints, expected.keypoints, atol=0.02)
    np.testing.assert_allclose(answer.result.keypoint_scores, expected.keypoint_scores, atol=1e-3)
    assert answer.result.boxes.tolist() == expected.boxes.tolist()
    assert answer.result.timings["total"] >= answer.result.timings["pose"] > 0


def test_a_fault_in_one_part_is_the_pictures_own_and_ends_the_others(
    pipeline: Pipeline, pictures: dict[str, bytes]
) -> None:
    def fail_at_the_second(_: Watched, first: int) -> None:
        if first == 8:
            raise ArithmeticError("cannot cut")

    with shared(Watched(pipeline, fail_at_the_second)) as sharing:
        with pytest.raises(ArithmeticError, match="cannot cut"):
            asyncio.run(sharing.answer(pictures["bus"], Options(boxes=BOXES), 120, None))
        assert sharing.working == 0
