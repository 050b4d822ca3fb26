"""Prometheus metrics: base units, bounded label sets, no user data. One registry per application."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
STAGES = ("decode", "queue", "detect", "crop", "pose", "keypoints", "encode")
DROPS = ("place", "decode", "detect", "crop", "pose", "encode")
DROP_REASONS = ("deadline_passed", "client_closed")
RELOADS = ("ok", "unchanged", "refused")
# what alerts count begins at 0: Prometheus sees no increase in a counter that begins with its first event
REFUSALS = ("queue_full", "too_many_connections", "deadline_passed", "internal")
FAULTS = (("/pose", "500"), ("/pose/batch", "500"))


class ScoreHistogram(Collector):
    """A histogram of scores in 0..1 by tenths, which takes an array at a time: a picture can have a thousand."""

    def __init__(self, name: str, documentation: str) -> None:
        self.name, self.documentation = name, documentation
        self._edges = np.linspace(0.1, 1, 10, dtype=np.float32)
        self._counts = np.zeros(len(self._edges) + 1, np.int64)
        self._sum = 0.0

    def observe(self, scores: np.ndarray) -> None:
        """Count scores of any shape; for one thread."""
        places = np.searchsorted(self._edges, scores.ravel())  # a score on an edge belongs below, as Prometheus has it
        self._counts += np.bincount(places, minlength=len(self._counts))
        self._sum += float(scores.sum())

    def collect(self) -> Iterable[Metric]:
        """See `Collector`."""
        bounds = [f"{edge:.1f}" for edge in self._edges] + ["+Inf"]
        buckets = list(zip(bounds, self._counts.cumsum().astype(float).tolist(), strict=True))
        yield HistogramMetricFamily(self.name, self.documentation, buckets, self._sum)


class Metrics:
    """The application's instruments; stages and queues have fixed names, routes come from a fixed list."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self.requests = Counter("pose_requests", "Requests answered.", ["route", "status"], registry=registry)
        self.request_duration = Histogram(
            "pose_request_duration_seconds", "From headers to answer.", ["route"], buckets=SECONDS, registry=registry
        )
        self.stage_duration = Histogram(
            "pose_stage_duration_seconds", "One stage of one request.", ["stage"], buckets=SECONDS, registry=registry
        )
        self.queue_depth = Gauge("pose_queue_depth", "Items waiting for a network.", ["stage"], registry=registry)
        self.rejected = Counter(
            "pose_rejected",
            "Requests, and single pictures of a batch, refused or given up, by cause.",
            ["reason"],
            registry=registry,
        )
        self.dropped = Counter(
            "pose_dropped",
            "Pictures, at `pose` crops, dropped before a stage ran: the deadline passed or the client hung up.",
            ["stage", "reason"],
            registry=registry,
        )
        self.batch_size = Histogram(
            "pose_batch_size", "Items in one run.", ["stage"], buckets=(1, 2, 4, 8, 16, 32, 64), registry=registry
        )
        self.persons = Histogram(
            "pose_persons_per_image", "Persons found.", buckets=(0, 1, 2, 3, 5, 10, 20, 50), registry=registry
        )
        self.keypoint_score = ScoreHistogram("pose_keypoint_score", "Scores of all keypoints; watch it for drift.")
        registry.register(self.keypoint_score)
        self.model_info = Gauge(
            "pose_model_info",
            "1 for the model that serves.",
            ["name", "version", "sha256", "engine", "device", "precision"],
            registry=registry,
        )
        self.load_seconds = Gauge("pose_model_load_seconds", "Loading and warming the models.", registry=registry)
        self.reloads = Counter("pose_model_reloads", "Reloads of the model, by result.", ["result"], registry=registry)
        for reason in REFUSALS:
            self.rejected.labels(reason)
        for route, status in FAULTS:
            self.requests.labels(route, status)
        for result in RELOADS:
            self.reloads.labels(result)
        for stage in STAGES:
            self.stage_duration.labels(stage)
        for stage in DROPS:
            for reason in DROP_REASONS:
                self.dropped.labels(stage, reason)

    def show_model(self, info: Sequence[str], load_seconds: float) -> None:
        """The model that serves from now on, in the order of `pose_model_info`'s labels; the one before is gone."""
        self.model_info.clear()
        self.model_info.labels(*info).set(1)
        self.load_seconds.set(load_seconds)

    def watch_service(self, ready: Callable[[], bool], working: Callable[[], int], places: int) -> None:
        """Add whether work is taken, and how many of the places for pictures are."""
        Gauge("pose_ready", "1 while work is taken.", registry=self.registry).set_function(ready)
        taken = Gauge("pose_places_taken", "Pictures being worked on or waiting for it.", registry=self.registry)
        taken.set_function(working)
        Gauge("pose_places", "Most of them: the setting queue_size.", registry=self.registry).set(places)

    def watch_queue(self, stage: str, depth: Callable[[], int]) -> None:
        """Read a queue's length whenever metrics are asked for."""
        self.queue_depth.labels(stage).set_function(depth)

    def watch_drop(self, stage: str) -> Callable[[str], None]:
        """What counts a dropped item of the stage, given the reason."""
        return lambda reason: self.dropped.labels(stage, reason).inc()

    def render(self) -> bytes:
        """The text exposition format."""
        return generate_latest(self.registry)

    def watch_gpu(self, healthy: Callable[[], bool]) -> None:
        """Add the GPU's memory and health."""
        memory = Gauge("pose_gpu_memory_bytes", "GPU memory of this process.", ["kind"], registry=self.registry)
        import torch

        memory.labels("allocated").set_function(torch.cuda.memory_allocated)
        memory.labels("reserved").set_function(torch.cuda.memory_reserved)
        health = Gauge("pose_gpu_healthy", "0 once a CUDA call failed for good.", registry=self.registry)
        health.set_function(healthy)
