"""Metrics say what happened, in the format that Prometheus reads."""

import numpy as np
from prometheus_client import CollectorRegistry, Histogram

from app.metrics import DROP_REASONS, FAULTS, REFUSALS, Metrics


def test_scores_taken_as_arrays_count_like_one_by_one() -> None:
    edges = np.arange(11, dtype=np.float32) / 10
    scores = np.concatenate([np.random.default_rng(0).random(500).astype(np.float32), edges])
    metrics, registry = Metrics(), CollectorRegistry()
    reference = Histogram("pose_keypoint_score", "x", buckets=[i / 10 for i in range(1, 11)], registry=registry)
    for part in (scores[:17].reshape(1, 17), scores[17:], scores[:0]):
        metrics.keypoint_score.observe(part)
    for score in scores:
        reference.observe(round(float(score), 6))
    for bound in ("0.1", "0.5", "1.0", "+Inf"):
        labels = {"le": bound}
        assert metrics.registry.get_sample_value("pose_keypoint_score_bucket", labels) == registry.get_sample_value(
            "pose_keypoint_score_bucket", labels
        )
    total = metrics.registry.get_sample_value("pose_keypoint_score_sum")
    assert total is not None
    assert abs(total - scores.sum()) < 0.01
    assert b'pose_keypoint_score_bucket{le="+Inf"} 511.0' in metrics.render()


def test_drops_are_counted_by_stage_and_reason() -> None:
    metrics = Metrics()
    for reason in DROP_REASONS:
        metrics.watch_drop("pose")(reason)
        labels = {"stage": "pose", "reason": reason}
        assert metrics.registry.get_sample_value("pose_dropped_total", labels) == 1
    assert metrics.registry.get_sample_value("pose_dropped_total", labels | {"stage": "decode"}) == 0


def test_readiness_and_places_are_read_when_they_are_asked_for() -> None:
    metrics, ready, working = Metrics(), [False], [0]
    metrics.watch_service(lambda: ready[0], lambda: working[0], 32)

    def read() -> list[float | None]:
        names = ("pose_ready", "pose_places_taken", "pose_places")
        return [metrics.registry.get_sample_value(name) for name in names]

    assert read() == [0, 0, 32]
    ready[0], working[0] = True, 5
    assert read() == [1, 5, 32]


def test_what_alerts_count_begins_at_zero() -> None:
    registry = Metrics().registry
    for reason in REFUSALS:
        assert registry.get_sample_value("pose_rejected_total", {"reason": reason}) == 0
    for route, status in FAULTS:
        assert registry.get_sample_value("pose_requests_total", {"route": route, "status": status}) == 0
