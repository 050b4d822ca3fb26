"""Metrics say what happened, in the format that Prometheus reads."""

import numpy as np
from prometheus_client import CollectorRegistry, Histogram

from app.metrics import DROP_REASONS, Metrics


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
