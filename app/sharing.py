"""The pipeline's steps for many requests at once.

Pictures are decoded and crops are cut in a pool of threads, and each network has a thread whose runs all requests
share. The people of one picture are cut in parts of one batch, so that the network works on the first while the next
is cut.
"""

import asyncio
import itertools
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from app.batching import Batcher, Done, drop_reason, is_late, timed
from app.commons import Commons
from app.detector import Boxes
from app.errors import DeadlineError
from app.images import Picture, decode, encode
from app.metrics import Metrics
from app.pipeline import Joints, Pipeline
from app.result import PoseResult
from app.schemas import Options
from model.drawing import draw
from model.skeletons import Skeleton

T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    """What a request gets: the people, and the annotated picture where it was asked for."""

    result: PoseResult
    picture: bytes | None


class SharedPipeline:
    """See the module.

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
        self._pose = Batcher(
            "pose",
            pipeline.pose,
            pipeline.most,
            commons.renew_turns(),
            metrics.batch_size.labels("pose").observe,
            watch_error,
            metrics.watch_drop("pose"),
        )
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
        ticket = _Ticket(timeout, object())
        self.commons.check_places()
        try:
            async with asyncio.timeout(timeout), self.commons.place():
                return await self._work(data, options, ticket, media_type)
        except TimeoutError:
            raise DeadlineError() from None

    async def answer_each(
        self, pictures: Sequence[bytes | Exception], options: Options, timeout: float
    ) -> list[PoseResult | BaseException]:
        """People of several encoded pictures, in order; in place of one that fails stands its exception.

        Each picture needs one of `queue_size` places. They are taken in order, as they come free, and at most half of
        them at once, nor more than two batches' worth: others get in between. In the networks' queues all pictures
        together count as one request. Cancelling takes what has not begun out of the queues.

        Args:
            pictures: a picture that was found to be unfit already is given as its exception.

        Raises:
            RequestError: 422 an option that does not fit the settings; 503 not even one place is free.
        """
        options = self.pipeline.complete(options)
        self.commons.check_places()
        share = asyncio.Semaphore(max(1, min(self.settings.queue_size // 2, 2 * self.settings.max_batch)))
        group = object()

        async def one(data: bytes | Exception) -> PoseResult:
            if isinstance(data, Exception):
                raise data
            ticket = _Ticket(timeout, group)
            placed = False
            try:
                async with asyncio.timeout(timeout), share, self.commons.place():
                    if is_late(ticket.deadline):  # with the picture that had this place
                        raise TimeoutError
                    placed = True
                    return (await self._work(data, options, ticket, None)).result
            except TimeoutError:
                raise DeadlineError() from None
            finally:
                if not placed:
                    self.metrics.watch_drop("place")(drop_reason(ticket.deadline))

        return await asyncio.gather(*(one(data) for data in pictures), return_exceptions=True)

    async def in_pool(self, step: Callable[..., T], *arguments: object) -> T:
        """Run a short step beside the event loop."""
        return await self.commons.run(step, *arguments)

    async def _work(self, data: bytes, options: Options, ticket: "_Ticket", media_type: str | None) -> Answer:
        ticket.begin()
        pipeline = self.pipeline
        picture = await self._step(ticket, "decode", decode, data, self.settings.max_pixels)
        found = pipeline.given_boxes(picture, options)
        if found is None:
            [found] = await ticket.wait("detect", self.commons.detect.submit([picture], ticket.deadline, ticket.group))
        boxes, box_scores = pipeline.select(found, options)
        joints, affines = await self._estimate(ticket, picture, boxes, options)
        # a tenth of a millisecond: less than handing it to another thread and back
        result = ticket.run("keypoints", pipeline.assemble, picture, boxes, box_scores, joints, affines, options)
        drawn = None
        if media_type is not None:
            skeleton = pipeline.package.skeleton
            drawn = await self._step(ticket, "encode", _render, picture, result, skeleton, options, media_type)
        seconds = ticket.seconds()
        self._record(seconds, result)
        timings = {name: seconds.get(name, 0.0) for name in ("decode", "detect", "pose", "queue")}
        return Answer(replace(result, timings={**timings, "total": time.monotonic() - ticket.arrived}), drawn)

    async def _estimate(
        self, ticket: "_Ticket", picture: Picture, boxes: Boxes, options: Options
    ) -> tuple[list[Joints], np.ndarray]:
        """Joints per box, in order, and affines (N, 2, 3) float64 from crop to picture."""

        async def part(some: Boxes) -> tuple[list[Joints], np.ndarray]:
            crops, affines = await self._step(ticket, "crop", self.pipeline.cut, picture, some, options)
            return await ticket.wait("pose", self._pose.submit(crops, ticket.deadline, ticket.group)), affines

        size = self.pipeline.cut_at_once
        parts = await _together([part(boxes[i : i + size]) for i in range(0, max(len(boxes), 1), size)])
        return [joints for found, _ in parts for joints in found], np.concatenate([affines for _, affines in parts])

    async def _step(self, ticket: "_Ticket", stage: str, step: Callable[..., T], *arguments: object) -> T:
        [result] = await ticket.wait(stage, [self.commons.in_pool(stage, ticket.deadline, step, *arguments)])
        return result

    def _record(self, seconds: dict[str, float], result: PoseResult) -> None:
        for stage, value in seconds.items():
            self.metrics.stage_duration.labels(stage).observe(value)
        self.metrics.persons.observe(len(result.boxes))
        self.metrics.keypoint_score.observe(result.keypoint_scores)


@dataclass
class _Span:
    """When a stage's steps were first submitted, first began and last ended (`time.monotonic` seconds)."""

    submitted: float
    began: float
    ended: float


class _Ticket:
    """One picture's way through the queues: its deadline, its group, and its seconds by stage."""

    def __init__(self, timeout: float, group: object) -> None:
        self.arrived = time.monotonic()
        self.deadline = self.arrived + timeout
        self.group = group
        self._placed = self.arrived
        self._spans: dict[str, _Span] = {}

    def begin(self) -> None:
        """It has got its place."""
        self._placed = time.monotonic()

    def seconds(self) -> dict[str, float]:
        """By stage, from the first step's begin to the last one's end. `queue`: waiting for a place, and from each
        stage's submission to its begin."""
        spans = self._spans
        queue = self._placed - self.arrived + sum(max(0.0, span.began - span.submitted) for span in spans.values())
        return {stage: span.ended - span.began for stage, span in spans.items()} | {"queue": queue}

    def run(self, stage: str, step: Callable[..., T], *arguments: object) -> T:
        """The result of a step that is done here and now."""
        done = timed(step, *arguments)
        self._spans[stage] = _Span(done.began, done.began, done.ended)
        return done.result

    async def wait(self, stage: str, futures: Sequence[Future[Done[T]]]) -> list[T]:
        """Results of steps submitted just now; cancelling this cancels those that have not begun."""
        submitted = time.monotonic()
        await _settle(futures)
        done = [future.result() for future in futures]
        if done:
            span = self._spans.setdefault(stage, _Span(submitted, done[0].began, done[0].ended))
            span.submitted = min(span.submitted, submitted)
            span.began = min(span.began, *(one.began for one in done))
            span.ended = max(span.ended, *(one.ended for one in done))
        return [one.result for one in done]


async def _settle(futures: Sequence[Future[T]]) -> None:
    """Return once all are done, waking the event loop once; cancelling this cancels those that have not begun."""
    if not futures:
        return
    loop = asyncio.get_running_loop()
    settled = loop.create_future()
    left = itertools.count(len(futures) - 1, -1)

    def wake() -> None:
        if not settled.done():
            settled.set_result(None)

    def count(_: Future[T]) -> None:
        if next(left) == 0 and not loop.is_closed():
            loop.call_soon_threadsafe(wake)

    for future in futures:
        future.add_done_callback(count)
    try:
        await settled
    finally:
        for future in futures:
            future.cancel()


async def _together(parts: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Results in order; where one raises, the others are cancelled."""
    if len(parts) == 1:
        return [await parts[0]]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(part) for part in parts]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


def _render(picture: Picture, result: PoseResult, skeleton: Skeleton, options: Options, media_type: str) -> bytes:
    return encode(draw(picture, result, skeleton, options.draw, options.keypoint_score or 0), media_type)
