"""The steps from picture to people, without a server."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from serving import find_dots

from app.canary import CanaryError, canary_picture, warm
from app.detector import Choice
from app.errors import RequestError
from app.images import Picture, decode
from app.pipeline import Pipeline
from app.result import PoseResult
from app.schemas import Options
from app.settings import Settings
from model.drawing import draw
from model.inference import Engine


@pytest.fixture(scope="module")
def bus(pictures: dict[str, bytes]) -> Picture:
    return decode(pictures["bus"], 10**7)


class FixedDetector:
    """Finds the same three people everywhere."""

    name = "fixed"
    least_score = 0.5

    def detect(self, pictures: list[Picture], alone: bool = True) -> list[tuple[np.ndarray, np.ndarray]]:  # noqa: ARG002
        boxes = np.array([[0, 0, 50, 100], [60, 0, 110, 100], [120, 0, 170, 100]], np.float32)
        return [(boxes, np.array([0.9, 0.6, 0.1], np.float32)) for _ in pictures]


def with_parts(pipeline: Pipeline, engine: Engine | None = None, detector: object = None) -> Pipeline:
    choice = Choice(detector) if detector else pipeline.choice
    return Pipeline(pipeline.settings, pipeline.package, engine or pipeline.engine, pipeline.runtime, choice)


def test_the_whole_picture_is_one_person_without_a_detector(pipeline: Pipeline, bus: Picture) -> None:
    result = pipeline.predict(bus)
    assert result.boxes.tolist() == [[0, 0, 810, 1080]]
    assert result.keypoints.shape == (1, 17, 2)
    assert set(result.timings) == {"decode", "detect", "pose", "queue", "total"}


def test_given_boxes_skip_the_detector(pipeline: Pipeline, bus: Picture) -> None:
    result = pipeline.predict(bus, Options(boxes=[(10, 20, 200, 500), (300, 100, 500, 700)]))
    assert result.boxes.tolist() == [[10, 20, 200, 500], [300, 100, 500, 700]]
    assert result.box_scores.tolist() == [1, 1]


def test_no_boxes_give_no_persons(pipeline: Pipeline, bus: Picture) -> None:
    result = pipeline.predict(bus, Options(boxes=[]))
    assert result.keypoints.shape == (0, 17, 2)
    assert result.scores.shape == (0,)


def test_a_person_does_not_depend_on_the_others(pipeline: Pipeline, bus: Picture) -> None:
    boxes = [(10.0, 20.0, 200.0, 500.0), (300.0, 100.0, 500.0, 700.0), (0.0, 0.0, 810.0, 1080.0)]
    together = pipeline.predict(bus, Options(boxes=boxes))
    for i, box in enumerate(boxes):
        alone = pipeline.predict(bus, Options(boxes=[box]))
        np.testing.assert_allclose(alone.keypoints[0], together.keypoints[i], atol=0.01)


def picture_with_dot(x: int, y: int) -> Picture:
    picture = np.full((500, 700, 3), 90, np.uint8)
    cv2.circle(picture, (x, y), 14, (255, 0, 0), -1, cv2.LINE_AA)
    return picture


@pytest.mark.parametrize("flip_test", [False, True], ids=["once", "flip test"])
@pytest.mark.parametrize(
    "box",
    [
        pytest.param((250.0, 60.0, 450.0, 460.0), id="upright box"),
        pytest.param((100.0, 150.0, 600.0, 350.0), id="wide box"),
        pytest.param((-40.0, -60.0, 400.0, 700.0), id="box that reaches out of the picture"),
    ],
)
def test_keypoints_lie_where_they_are_in_the_picture(
    pipeline: Pipeline, box: tuple[float, float, float, float], flip_test: bool
) -> None:
    dots = with_parts(pipeline, find_dots)
    result = dots.predict(picture_with_dot(333, 222), Options(boxes=[box], flip_test=flip_test))
    np.testing.assert_allclose(result.keypoints[0], np.broadcast_to([333, 222], (17, 2)), atol=1.5)


@pytest.mark.parametrize(
    ("options", "scores"),
    [
        pytest.param(Options(), [0.9, 0.6], id="the setting's least box score"),
        pytest.param(Options(box_score=0.7), [0.9], id="a higher one"),
        pytest.param(Options(box_score=0), [0.9, 0.6, 0.1], id="none"),
        pytest.param(Options(box_score=0, max_persons=1), [0.9], id="the best one"),
    ],
)
def test_boxes_are_chosen_by_score(pipeline: Pipeline, bus: Picture, options: Options, scores: list[float]) -> None:
    result = with_parts(pipeline, detector=FixedDetector()).predict(bus, options)
    assert result.box_scores.tolist() == pytest.approx(scores)


def test_the_persons_score_is_box_score_times_mean_of_what_counts(pipeline: Pipeline, bus: Picture) -> None:
    detecting = with_parts(pipeline, detector=FixedDetector())
    for threshold in (0.0, 0.2, 0.5):
        result = detecting.predict(bus, Options(keypoint_score=threshold))
        for box_score, keypoints, score in zip(result.box_scores, result.keypoint_scores, result.scores, strict=True):
            counted = keypoints[keypoints >= threshold]
            assert score == pytest.approx(box_score * (counted.mean() if len(counted) else 0), abs=1e-6)


def test_the_flip_test_runs_every_crop_twice(pipeline: Pipeline, bus: Picture) -> None:
    seen: list[np.ndarray] = []

    def watched(crops: np.ndarray) -> torch.Tensor:
        seen.append(crops)
        return pipeline.engine(crops)

    with_parts(pipeline, watched).predict(bus, Options(flip_test=True))
    assert np.array_equal(seen[0][:, :, ::-1], seen[1])
    assert len(seen) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param(Options(boxes=[(900, 0, 950, 10)]), "boxes.0: lies outside", id="right of the picture"),
        pytest.param(Options(boxes=[(0, 0, 9, 9), (0, -50, 9, 0)]), "boxes.1: lies outside", id="above the picture"),
        pytest.param(Options(boxes=[(0, 0, 9, 9)] * 51), "boxes: 51 persons, the limit is 50", id="too many boxes"),
        pytest.param(Options(max_persons=51), "max_persons: 51 persons, the limit is 50", id="too many persons"),
    ],
)
def test_options_that_do_not_fit_are_refused(pipeline: Pipeline, bus: Picture, options: Options, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        pipeline.predict(bus, options)
    assert caught.value.status == 422


@pytest.mark.parametrize("shape", [(1, 1), (1, 40_000), (40_000, 1), (3, 2000)])
def test_pictures_of_any_shape_are_taken(pipeline: Pipeline, shape: tuple[int, int]) -> None:
    result = pipeline.predict(np.zeros((*shape, 3), np.uint8))
    assert np.isfinite(result.keypoints).all()


@pytest.mark.parametrize("box", [(-1e5, -1e5, 1e5, 1e5), (5, 5, 5.001, 5.001), (-1e5, 4, 1e5, 4.5)])
def test_boxes_of_any_size_are_taken(pipeline: Pipeline, bus: Picture, box: tuple[float, float, float, float]) -> None:
    assert np.isfinite(pipeline.predict(bus, Options(boxes=[box])).keypoints).all()


def test_numbers_that_are_not_finite_are_an_error(pipeline: Pipeline, bus: Picture) -> None:
    def broken(crops: np.ndarray) -> torch.Tensor:
        return torch.full((len(crops), 17, 24, 16), torch.nan)

    with pytest.raises(FloatingPointError, match="not finite"):
        with_parts(pipeline, broken).predict(bus)


def test_the_canary_knows_an_engine_that_changes_its_mind(pipeline: Pipeline) -> None:
    random = np.random.default_rng(0)

    def fickle(crops: np.ndarray) -> torch.Tensor:
        return pipeline.engine(random.integers(0, 256, crops.shape, np.uint8))

    warm(pipeline)
    with pytest.raises(CanaryError, match="differ from one run to the next"):
        warm(with_parts(pipeline, fickle))


def test_settings_are_the_options_defaults(pipeline: Pipeline) -> None:
    own = Pipeline(
        Settings(max_persons=3, box_score=0.4, keypoint_score=0.1),
        pipeline.package,
        pipeline.engine,
        pipeline.runtime,
        pipeline.choice,
    )
    options = own.complete(Options(box_score=0.7))
    assert (options.max_persons, options.box_score, options.keypoint_score) == (3, 0.7, 0.1)


def figure() -> PoseResult:
    """One person with every joint certain but the first, whose score is 0.1."""
    points = np.random.default_rng(0).uniform(40, 200, (1, 17, 2)).astype(np.float32)
    scores = np.full((1, 17), 0.9, np.float32)
    scores[0, 0] = 0.1
    box = np.array([[30, 30, 210, 210]], np.float32)
    return PoseResult(240, 320, box, np.ones(1, np.float32), points, scores, np.ones(1, np.float32))


def test_drawing_leaves_its_input_alone_and_draws_only_the_parts_asked_for(pipeline: Pipeline) -> None:
    picture, before = canary_picture(), canary_picture()
    skeleton = pipeline.package.skeleton
    drawn = {
        parts: draw(picture, figure(), skeleton, parts, 0.2) for parts in ((), ("box",), ("skeleton",), ("score",))
    }
    assert np.array_equal(picture, before)
    assert np.array_equal(drawn[()], picture)
    different = {parts: (image != picture).any(2) for parts, image in drawn.items() if parts}
    assert all(mask.any() for mask in different.values())
    assert different["box",][30, 100]
    assert not different["skeleton",][30, 100]


def test_joints_below_the_threshold_are_not_drawn(pipeline: Pipeline) -> None:
    picture, skeleton, result = canary_picture(), pipeline.package.skeleton, figure()
    lower = draw(picture, result, skeleton, ("skeleton",), 0.05)
    higher = draw(picture, result, skeleton, ("skeleton",), 0.2)
    x, y = result.keypoints[0, 0].round().astype(int)
    assert (lower[y, x] != picture[y, x]).any()
    assert not np.array_equal(lower, higher)
    none = draw(picture, replace(result, keypoint_scores=result.keypoint_scores * 0), skeleton, ("skeleton",), 0.2)
    assert np.array_equal(none, picture)
