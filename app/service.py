"""What all routes share: the models, their threads, the metrics, and whether the service may take work."""

import asyncio
import contextlib
import logging
import sys
import time
from collections.abc import Iterator

from app.canary import warm
from app.commons import Commons
from app.errors import OverloadError
from app.metrics import Metrics
from app.pipeline import Pipeline
from app.settings import Settings
from app.sharing import SharedPipeline

logger = logging.getLogger(__name__)


def load(settings: Settings) -> Pipeline:
    """The pipeline, loaded, warmed and found sane.

    Raises:
        PackageError, SettingsError: see `Pipeline.load`.
        CanaryError: see `warm`.
    """
    began = time.monotonic()
    pipeline = Pipeline.load(settings)
    warm(pipeline)
    pipeline.load_seconds = time.monotonic() - began
    logger.info("loaded and warm after %.1f s", pipeline.load_seconds)
    return pipeline


class Service:
    """One application's state. It takes work from `open` to `drain`."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.settings, self.metrics = settings, metrics
        self.requests = 0  # in progress
        self.alive = True
        self.draining = False
        self.notes: list[str] = []  # for `/model`: why a package that was to be reloaded is not used
        self._commons: Commons | None = None
        self._shared: SharedPipeline | None = None
        metrics.watch_service(
            lambda: self.ready, lambda: self._commons.working if self._commons else 0, settings.queue_size
        )

    @property
    def ready(self) -> bool:
        """Whether work is taken: models loaded, warm and sane, not draining, and the GPU, if any, alive."""
        return self._shared is not None and self.alive and not self.draining

    @property
    def shared(self) -> SharedPipeline:
        """The pipeline for requests.

        Raises:
            OverloadError: 503, no work is taken now.
        """
        if self.draining:
            raise OverloadError("draining", "the service is shutting down; send the request to another one")
        if self._shared is None or not self.alive:
            raise OverloadError("not_ready", "the service is not ready; see /readyz")
        return self._shared

    @contextlib.contextmanager
    def lease(self) -> Iterator[SharedPipeline]:
        """The pipeline for one request from its start to its end: a swap meanwhile does not close it.

        Raises:
            OverloadError: see `shared`.
        """
        shared = self.shared
        shared.users += 1
        try:
            yield shared
        finally:
            shared.users -= 1

    @property
    def opened(self) -> bool:
        """Whether there are models."""
        return self._shared is not None

    def open(self, pipeline: Pipeline) -> None:
        """Take work with these models, which are loaded and warm."""
        if pipeline.runtime.device == "cuda":
            self.metrics.watch_gpu(lambda: self.alive)
        self._commons = Commons(pipeline, self.metrics, self.watch_error)
        self._shared = self._share(pipeline, self._commons)

    async def swap(self, pipeline: Pipeline) -> None:
        """New requests are answered by these models from now on. Returns once the last request of those before has
        ended and their thread with it, so that there are never more than two."""
        old, commons = self._shared, self._commons
        assert old is not None
        assert commons is not None
        self._shared = self._share(pipeline, commons)
        try:
            while old.users:
                await asyncio.sleep(0.05)
        finally:
            await asyncio.to_thread(old.close)

    def _share(self, pipeline: Pipeline, commons: Commons) -> SharedPipeline:
        card, runtime = pipeline.package.card, pipeline.runtime
        info = (card.name, card.version, card.sha256, runtime.engine, runtime.device, runtime.precision)
        self.metrics.show_model(info, pipeline.load_seconds)
        return SharedPipeline(pipeline, commons, self.metrics, self.watch_error)

    def drain(self) -> None:
        """Take no more work; what is accepted goes on."""
        if not self.draining:
            logger.info("draining: %d requests in progress", self.requests)
        self.draining = True

    def close(self) -> None:
        """End the models' threads."""
        self.drain()
        if self._commons is not None and self._shared is not None:
            self._commons.close()
            self._shared.close()
            self._commons = self._shared = None

    def watch_error(self, error: Exception) -> None:
        """Latch a dead GPU: after a CUDA error every later call of this process fails, so it must be restarted."""
        torch = sys.modules.get("torch")  # not loaded where OpenVINO runs the networks
        if torch is not None and isinstance(error, torch.AcceleratorError):
            self.alive = False
            logger.critical("the GPU does not answer any more, this process must be restarted: %s", error)
