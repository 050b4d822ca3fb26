"""What outlives a pose package: the threads for pictures, the detector's thread, and the places of requests.

The detector is not loaded anew with the pose package. Its one thread serves the old and the new package alike, so it
never runs in two threads at once, its memory is not doubled, and a checkpoint that is a pickle is read only at the
start.
"""

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from app.batching import Batcher
from app.detector import Boxes, Detector, Scores
from app.errors import OverloadError
from app.images import Picture
from app.metrics import Metrics
from app.settings import Settings


class Commons:
    """See the module.

    Attributes:
        working: pictures being worked on, at most `queue_size`, whichever package answers them.
        pool: decodes, cuts and encodes pictures.
        detect: the detector's thread.
    """

    def __init__(
        self, settings: Settings, detector: Detector, metrics: Metrics, watch_error: Callable[[Exception], object]
    ) -> None:
        self.settings = settings
        self.working = 0
        self.pool = ThreadPoolExecutor(settings.decode_threads, "decode")
        size = metrics.batch_size.labels("detect").observe
        self.detect: Batcher[Picture, tuple[Boxes, Scores]] = Batcher(
            "detect", detector.detect, settings.max_batch, size, watch_error
        )
        metrics.watch_queue("detect", self.detect.__len__)

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """One of `queue_size` places, which bound every queue behind them.

        Raises:
            OverloadError: 503, all are taken.
        """
        if self.working >= self.settings.queue_size:
            raise OverloadError(
                "queue_full", f"{self.working} pictures are being worked on, the limit; try again shortly"
            )
        self.working += 1
        try:
            yield
        finally:
            self.working -= 1

    def close(self) -> None:
        """Finish what is queued, then end the threads."""
        self.pool.shutdown()
        self.detect.close()
