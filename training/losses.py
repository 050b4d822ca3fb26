"""Losses on heatmaps, weighted by joint."""

from typing import Literal

from torch import Tensor


def heatmap_loss(raw: Tensor, targets: Tensor, weights: Tensor, kind: Literal["cross_entropy", "mse"]) -> Tensor:
    """Scalar loss in float32.

    Args:
        raw: (N, K, h, w) network output.
        targets: (N, K, h, w) Gaussians of peak 1 (`HeatmapCodec.encode`).
        weights: (N, K): 0 leaves a joint out.
        kind: `cross_entropy`: between the target, scaled to sum to one, and the softmax over the pixels; learns from
            the first step where plain squared error predicts zeros for long. `mse`: HRNet's, half the squared error.
    """
    raw, targets = raw.float().flatten(2), targets.flatten(2)
    if kind == "mse":
        per_joint = ((raw - targets) ** 2).mean(-1) / 2
    else:
        share = targets / targets.sum(-1, keepdim=True).clamp(min=1e-12)
        per_joint = -(share * raw.log_softmax(-1)).sum(-1)
    return (per_joint * weights).sum() / weights.sum().clamp(min=1e-6)
