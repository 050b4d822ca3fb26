"""The whole line in one place: bytes -> picture -> boxes -> crops -> heatmaps -> keypoints -> people.

`Pipeline` holds the models and the steps, and runs them one after the other (`predict`). `SharedPipeline` runs the same
steps for many requests at once: pictures are decoded in a pool, and each network has a thread whose runs they share.
"""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch

from app.batching import Batcher, Done
from app.commons import Commons
from app.detector import Boxes, Choice, Scores, choose_detector
from app.engines import Runtime, choose_runtime, convert_apart, create_pose_engine
from app.errors import DeadlineError, RequestError
from app.images import Picture, decode, encode
from app.metrics import Metrics
from app.result import Floats, PoseResult
from app.schemas import Options
from app.settings import Settings
from model.drawing import draw
from model.inference import Engine, cut_crops, estimate, person_scores, to_picture
from model.package import Package, load_package
from model.skeletons import Skeleton

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class Crop:
    """One person's place in a pose batch: pixels (H, W, 3) uint8 RGB, and whether to average with the mirror image."""

    pixels: np.ndarray
    flip_test: bool


@dataclass(frozen=True)
class Joints:
    """One person's keypoints (K, 2) float32, crop pixels, and scores (K,) float32."""

    keypoints: Floats
    scores: Floats


class Pipeline:
    """The models and the steps. Its `detect` and `pose` each belong to one thread at a time."""

    def __init__(self, settings: Settings, package: Package, engine: Engine, runtime: Runtime, choice: Choice) -> None:
        self.settings, self.package, self.engine, self.runtime = settings, package, engine, runtime
        self.choice, self.detector = choice, choice.detector
        self.load_seconds = 0.0

    @classmethod
    def load(cls, settings: Settings) -> "Pipeline":
        """Load what the settings name; nothing is fetched from the network.

        Raises:
            PackageError: the pose package is missing or damaged, or the bundled detector is.
            SettingsError: a device, engine or precision is asked for that this machine has not.
        """
        runtime = choose_runtime(settings)
        torch.set_num_threads(runtime.threads)
        package = load_package(settings.model)
        engine = create_pose_engine(package, runtime, settings.cache_folder)
        choice = choose_detector(settings.detector, runtime, settings.cache_folder)
        card = package.card
        logger.info("pose %s %s (%s), detector %s", card.name, card.version, card.sha256[:12], choice.detector.name)
        return cls(settings, package, engine, runtime, choice)

    def renew(self) -> "Pipeline":
        """The pose package as its folder holds it now, on the same runtime and with the same detector. Not warm yet.

        Raises:
            PackageError: the package is missing or damaged, or cannot be converted for the engine.
        """
        package = load_package(self.settings.model)
        convert_apart(self.settings.model, self.runtime, self.settings.cache_folder)
        engine = create_pose_engine(package, self.runtime, self.settings.cache_folder)
        return Pipeline(self.settings, package, engine, self.runtime, self.choice)

    def predict(self, picture: Picture, options: Options | None = None) -> PoseResult:
        """People of one (H, W, 3) uint8 RGB picture, in this thread.

        Raises:
            RequestError: 422, an option that does not fit the settings or the picture.
        """
        options = self.complete(options or Options())
        began = time.monotonic()
        found = self.given_boxes(picture, options)
        if found is None:
            [found] = self.detect([picture])
        detected = time.monotonic()
        boxes, box_scores = self.select(found, options)
        crops, affines = self.cut(picture, boxes, options)
        batch = self.settings.max_batch
        joints = [j for i in range(0, len(crops), batch) for j in self.pose(crops[i : i + batch])]
        result = self.assemble(picture, boxes, box_scores, joints, affines, options)
        ended = time.monotonic()
        timings = {"decode": 0.0, "detect": detected - began, "pose": ended - detected, "queue": 0.0}
        return replace(result, timings={**timings, "total": ended - began})

    def complete(self, options: Options) -> Options:
        """Options with the settings' defaults in place of None.

        Raises:
            RequestError: 422, more persons than the settings allow.
        """
        most = self.settings.max_persons
        for name, count in (("max_persons", options.max_persons or 0), ("boxes", len(options.boxes or ()))):
            if count > most:
                raise RequestError(422, "bad_option", f"{name}: {count} persons, the limit is {most}")
        defaults = {"max_persons": most} | self.settings.model_dump(include={"box_score", "keypoint_score"})
        return options.model_copy(update={k: v for k, v in defaults.items() if getattr(options, k) is None})

    def given_boxes(self, picture: Picture, options: Options) -> tuple[Boxes, Scores] | None:
        """The caller's boxes with score 1; None where the detector has to find them.

        Raises:
            RequestError: 422, a box that lies outside the picture.
        """
        if options.boxes is None:
            return None
        height, width = picture.shape[:2]
        for i, (x1, y1, x2, y2) in enumerate(options.boxes):
            if x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0:
                raise RequestError(
                    422, "bad_option", f"boxes.{i}: lies outside the picture, which is {width} x {height} pixels"
                )
        return np.array(options.boxes, np.float32).reshape(-1, 4), np.ones(len(options.boxes), np.float32)

    def detect(self, pictures: list[Picture]) -> list[tuple[Boxes, Scores]]:
        """See `Detector.detect`."""
        return self.detector.detect(pictures)

    def select(self, found: tuple[Boxes, Scores], options: Options) -> tuple[Boxes, Scores]:
        """The boxes to work on: scored high enough, and no more than asked for."""
        boxes, scores = found
        if options.boxes is None:
            keep = scores >= (options.box_score or 0)
            boxes, scores = boxes[keep], scores[keep]
        return boxes[: options.max_persons], scores[: options.max_persons]

    def cut(self, picture: Picture, boxes: Boxes, options: Options) -> tuple[list[Crop], np.ndarray]:
        """A crop per box, and affines (N, 2, 3) float64 from crop to picture."""
        card = self.package.card
        crops, affines = cut_crops(picture, boxes, card.input_size, card.padding)
        return [Crop(pixels, options.flip_test) for pixels in crops], affines

    def pose(self, crops: list[Crop]) -> list[Joints]:
        """Keypoints per crop, in order."""
        joints: dict[int, Joints] = {}
        for flip in (False, True):
            rows = [i for i, crop in enumerate(crops) if crop.flip_test == flip]
            if rows:
                pixels = np.stack([crops[i].pixels for i in rows])
                keypoints, scores = estimate(self.engine, pixels, self.package.codec, self.package.skeleton, flip)
                if not (np.isfinite(keypoints).all() and np.isfinite(scores).all()):
                    raise FloatingPointError("the pose network gave numbers that are not finite")
                joints.update({row: Joints(keypoints[i], scores[i]) for i, row in enumerate(rows)})
        return [joints[i] for i in range(len(crops))]

    def assemble(
        self,
        picture: Picture,
        boxes: Boxes,
        box_scores: Scores,
        joints: Sequence[Joints],
        affines: np.ndarray,
        options: Options,
    ) -> PoseResult:
        """Keypoints in picture pixels and persons' scores; without timings."""
        count = len(self.package.skeleton)
        keypoints = np.asarray([j.keypoints for j in joints], np.float32).reshape(-1, count, 2)
        scores = np.asarray([j.scores for j in joints], np.float32).reshape(-1, count)
        mean = person_scores(scores, options.keypoint_score or 0)
        height, width = picture.shape[:2]
        return PoseResult(
            width,
            height,
            boxes,
            box_scores,
            to_picture(keypoints, affines),
            scores,
            box_scores * mean,
        )


@dataclass(frozen=True)
class Answer:
    """What a request gets: the people, and the annotated picture where it was asked for."""

    result: PoseResult
    picture: bytes | None


class SharedPipeline:
    """The pipeline's steps for many requests at once.

    Args:
        commons: what it shares with the pipelines before and after it.
        watch_error: called with every exception of the pose network.

    Attributes:
        users: requests that are answered by this pipeline; it may be closed once there are none.
    """

    def __init__(
        self, pipeline: Pipeline, commons: Commons, metrics: Metrics, watch_error: Callable[[Exception], object]
    ) -> None:
        settings = pipeline.settings
        self.pipeline, self.commons, self.metrics, self.settings = pipeline, commons, metrics, settings
        self.users = 0
        size = metrics.batch_size.labels("pose").observe
        self._pose = Batcher("pose", pipeline.pose, settings.max_batch, size, watch_error)
        metrics.watch_queue("pose", self._pose.__len__)

    @property
    def working(self) -> int:
        """Pictures being worked on."""
        return self.commons.working

    def close(self) -> None:
        """Finish what is queued for the pose network, then end its thread."""
        self._pose.close()

    async def answer(self, data: bytes, options: Options, timeout: float, media_type: str | None) -> Answer:
        """People of one encoded picture; drawn and encoded as `media_type` where that is not None.

        Cancelling takes what has not begun out of the queues.

        Raises:
            RequestError: 400, 413, 415, 422: see `decode` and `Options`; 503 no place left; 504 too late.
        """
        options = self.pipeline.complete(options)
        with self.commons.place():
            try:
                async with asyncio.timeout(timeout):
                    return await self._work(data, options, time.monotonic() + timeout, media_type)
            except TimeoutError:
                raise DeadlineError() from None

    async def _work(self, data: bytes, options: Options, deadline: float, media_type: str | None) -> Answer:
        began = time.monotonic()
        clock = _Clock()
        pipeline = self.pipeline
        picture = await self._timed_in_pool(clock, "decode", decode, data, self.settings.max_pixels)
        found = pipeline.given_boxes(picture, options)
        if found is None:
            [found] = await clock.wait("detect", self.commons.detect.submit([picture], deadline))
        boxes, box_scores = pipeline.select(found, options)
        crops, affines = await self._timed_in_pool(clock, "crop", pipeline.cut, picture, boxes, options)
        joints = await clock.wait("pose", self._pose.submit(crops, deadline))
        result = await self._timed_in_pool(
            clock, "keypoints", pipeline.assemble, picture, boxes, box_scores, joints, affines, options
        )
        drawn = None
        if media_type is not None:
            skeleton = pipeline.package.skeleton
            drawn = await self._timed_in_pool(clock, "encode", _render, picture, result, skeleton, options, media_type)
        self._record(clock, result)
        timings = {name: clock.seconds[name] for name in ("decode", "detect", "pose", "queue")}
        return Answer(replace(result, timings={**timings, "total": time.monotonic() - began}), drawn)

    async def in_pool(self, step: Callable[..., T], *arguments: object) -> T:
        """Run a short step beside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self.commons.pool, step, *arguments)

    async def _timed_in_pool(self, clock: "_Clock", stage: str, step: Callable[..., T], *arguments: object) -> T:
        [result] = await clock.wait(stage, [self.commons.pool.submit(_timed, step, *arguments)])
        return result

    def _record(self, clock: "_Clock", result: PoseResult) -> None:
        for stage, seconds in clock.seconds.items():
            self.metrics.stage_duration.labels(stage).observe(seconds)
        self.metrics.persons.observe(len(result.boxes))
        for score in result.keypoint_scores.flat:
            self.metrics.keypoint_score.observe(float(score))


class _Clock:
    """Seconds by stage of one request; `queue` is the time between a step's submission and its begin."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    async def wait(self, stage: str, futures: Sequence[Future[Done[T]]]) -> list[T]:
        """Results of steps submitted just now; cancelling this cancels those that have not begun."""
        submitted = time.monotonic()
        done = await asyncio.gather(*(asyncio.wrap_future(future) for future in futures), return_exceptions=True)
        results: list[T] = []
        for one in done:
            if isinstance(one, BaseException):
                raise one
            results.append(one.result)
        if futures:
            finished = [one for one in done if isinstance(one, Done)]
            began = min(one.began for one in finished)
            self.seconds[stage] += max(one.ended for one in finished) - began
            self.seconds["queue"] += max(0.0, began - submitted)
        return results


def _timed(step: Callable[..., T], *arguments: object) -> Done[T]:
    began = time.monotonic()
    result = step(*arguments)
    return Done(result, began, time.monotonic())


def _render(picture: Picture, result: PoseResult, skeleton: Skeleton, options: Options, media_type: str) -> bytes:
    return encode(draw(picture, result, skeleton, options.draw, options.keypoint_score or 0), media_type)
