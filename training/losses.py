"""Losses on heatmaps, weighted by joint.

A loss comes as a sum, and what to divide it by depends on the weights alone (`counted`): so the mean of a batch that is
spread over several processes or parts is known before the first part is computed.
"""

from typing import Literal

from torch import Tensor

Kind = Literal["cross_entropy", "mse"]


def heatmap_loss(raw: Tensor, targets: Tensor, weights: Tensor, kind: Kind, hard_joints: int = 0) -> Tensor:
    """Sum of the joints' losses, a float32 scalar.

    Args:
        raw: (N, K, h, w) network output.
        targets: (N, K, h, w) Gaussians of peak 1 (`HeatmapCodec.encode`), or any non-negative heatmaps.
        weights: (N, K): 0 leaves a joint out.
        kind: `cross_entropy`: between the target, scaled to sum to one, and the softmax over the pixels; learns from
            the first step where plain squared error predicts zeros for long. `mse`: HRNet's, half the squared error.
        hard_joints: where not 0, only so many joints of each person count, those with the largest loss: online hard
            keypoint mining (Chen et al., "Cascaded Pyramid Network", CVPR 2018).
    """
    raw, targets = raw.float().flatten(2), targets.flatten(2)
    if kind == "mse":
        per_joint = ((raw - targets) ** 2).mean(-1) / 2
    else:
        share = targets / targets.sum(-1, keepdim=True).clamp(min=1e-12)
        per_joint = -(share * raw.log_softmax(-1)).sum(-1)
    return _largest(per_joint * weights, hard_joints).sum()


def counted(weights: Tensor, hard_joints: int = 0) -> Tensor:
    """What to divide `heatmap_loss` by: the weights (N, K) of the joints that count, at least a little."""
    return _largest(weights, hard_joints).sum().clamp(min=1e-6)


def _largest(values: Tensor, count: int) -> Tensor:
    return values.topk(min(count, values.shape[1]), 1).values if count else values
