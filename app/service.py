"""What all routes share: the models, their threads, the metrics, and whether the service may take work."""

import logging
import time

import torch

from app.canary import warm
from app.errors import OverloadError
from app.metrics import Metrics
from app.pipeline import Pipeline, SharedPipeline
from app.settings import Settings

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
        self._shared: SharedPipeline | None = None

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

    def open(self, pipeline: Pipeline) -> None:
        """Take work with these models, which are loaded and warm."""
        card, runtime = pipeline.package.card, pipeline.runtime
        info = (card.name, card.version, card.sha256, runtime.engine, runtime.device, runtime.precision)
        self.metrics.model_info.labels(*info).set(1)
        self.metrics.load_seconds.set(pipeline.load_seconds)
        if runtime.device == "cuda":
            self.metrics.watch_gpu(lambda: self.alive)
        self._shared = SharedPipeline(pipeline, self.metrics, self.watch_error)

    def drain(self) -> None:
        """Take no more work; what is accepted goes on."""
        if not self.draining:
            logger.info("draining: %d requests in progress", self.requests)
        self.draining = True

    def close(self) -> None:
        """End the models' threads."""
        self.drain()
        if self._shared is not None:
            self._shared.close()
            self._shared = None

    def watch_error(self, error: Exception) -> None:
        """Latch a dead GPU: after a CUDA error every later call of this process fails, so it must be restarted."""
        if isinstance(error, torch.AcceleratorError):
            self.alive = False
            logger.critical("the GPU does not answer any more, this process must be restarted: %s", error)
