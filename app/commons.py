"""What outlives a pose package: the threads for pictures, the detector's threads, and the places of requests.

The detector is not loaded anew with the pose package. Its threads serve the old and the new package alike, so there are
never more of them than it allows, its memory is not doubled, and a checkpoint that is a pickle is read only at the
start.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from app.batching import Batcher, Done, Turns, drop_reason, timed
from app.detector import Boxes, Scores, WholePicture
from app.errors import OverloadError
from app.images import Picture
from app.metrics import Metrics
from app.pipeline import Pipeline

T = TypeVar("T")


class Commons:
    """See the module.

    Args:
        pipeline: of which the detector and the settings are kept.

    Attributes:
        working: pictures being worked on, at most `queue_size`, whichever package answers them.
        detect: the detector's threads.
    """

    def __init__(self, pipeline: Pipeline, metrics: Metrics, watch_error: Callable[[Exception], object]) -> None:
        self.settings, self.metrics, self.watch_error = pipeline.settings, metrics, watch_error
        settings, detector, runtime = pipeline.settings, pipeline.detector, pipeline.runtime
        self.working = 0
        self._lanes = runtime.lanes if runtime.device == "cpu" else 0
        self._has_network = not isinstance(detector, WholePicture)
        self._places = asyncio.Semaphore(settings.queue_size)
        self._pool = ThreadPoolExecutor(settings.decode_threads, "decode")
        self.detect: Batcher[Picture, tuple[Boxes, Scores]] = Batcher(
            "detect",
            detector.detect,
            pipeline.most,
            self._new_turns() if self._has_network else None,
            watch_batch=metrics.batch_size.labels("detect").observe,
            watch_error=watch_error,
            watch_drop=metrics.watch_drop("detect"),
        )
        metrics.watch_queue("detect", self.detect.__len__)

    def renew_turns(self) -> Turns | None:
        """Turns for a new pose network, which the detector takes with it from now on; None on a GPU, where both may run
        at once.

        The pose network before ends its last requests beside them, so that nobody has to wait for it.
        """
        turns = self._new_turns()
        if self._has_network:
            self.detect.turns = turns
        return turns

    def _new_turns(self) -> Turns | None:
        return Turns(self._lanes) if self._lanes else None

    def check_places(self) -> None:
        """Whether there is a place at once; whoever waits for one comes first.

        Raises:
            OverloadError: 503, all are taken.
        """
        if self._places.locked():
            raise OverloadError(
                "queue_full", f"{self.working} pictures are being worked on, the limit; try again shortly"
            )

    @contextlib.asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """One of `queue_size` places, which bound every queue behind them; waits for it."""
        async with self._places:
            self.working += 1
            try:
                yield
            finally:
                self.working -= 1

    def in_pool(self, stage: str, deadline: float, step: Callable[..., T], *arguments: object) -> Future[Done[T]]:
        """Queue a short step of a request; one that is cancelled before it runs is counted as dropped."""
        future = self._pool.submit(timed, step, *arguments)

        def watch(done: Future[Done[T]]) -> None:
            if done.cancelled():
                self.metrics.watch_drop(stage)(drop_reason(deadline))
            elif isinstance(error := done.exception(), Exception):
                self.watch_error(error)  # a GPU that cuts crops may die of it

        future.add_done_callback(watch)
        return future

    async def run(self, step: Callable[..., T], *arguments: object) -> T:
        """Run a short step beside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, step, *arguments)

    def close(self) -> None:
        """Finish what is queued, then end the threads."""
        self._pool.shutdown()
        self.detect.close()
