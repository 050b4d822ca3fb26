"""SC and SCR, the light residual block of SDHRNet (section 3.1 of the paper).

A 3x3 convolution makes half of the channels, a depthwise one makes the other half from them, and a gate weighs all.
Half of the training time of these blocks is memory traffic, so the gate and the concatenation are one autograd
function while training (`GatedConcat`); evaluation and export use plain operations with the same result.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from model.networks.blocks import conv_bn


def eca_kernel(channels: int) -> int:
    """Odd kernel size for a 1-D convolution across `channels` (ECA-Net, equation 12, gamma 2 and b 1)."""
    size = int(abs(math.log2(channels) / 2 + 0.5))
    return size if size % 2 else size + 1


class PooledHalves(torch.autograd.Function):
    """Means over the pixels of `a` and `b`, both (N, h, H, W): (N, 2 h).

    Backward, `GatedHalves` has left in `passed` what comes by way of the product, so that the gradients of `a` and `b`
    are written once, dense, instead of being summed up from several.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, passed: list[tuple[Tensor, Tensor]]) -> Tensor:
        ctx.passed, ctx.pixels = passed, a.shape[2] * a.shape[3]
        return torch.cat([a.mean((2, 3)), b.mean((2, 3))], 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        grad, gate = ctx.passed.pop()
        pooled = (grads[0] / ctx.pixels).to(grad.dtype)[:, :, None, None]
        both = torch.addcmul(pooled, grad, gate)  # four times as fast as on halves of sixteen channels
        a, b = (half.contiguous(memory_format=torch.channels_last) for half in both.chunk(2, 1))
        return a, b, None


class GatedHalves(torch.autograd.Function):
    """`concat(a * gate[:h], b * gate[h:])` without the intermediate concatenation.

    `a`, `b`: (N, h, H, W); their gradients go by way of `PooledHalves`, with which this shares `passed`.
    `gate`: (N, 2 h, 1, 1), made from what that returns. Returns (N, 2 h, H, W).
    """

    @staticmethod
    def forward(ctx: Any, gate: Tensor, a: Tensor, b: Tensor, passed: list[tuple[Tensor, Tensor]]) -> Tensor:
        half = a.shape[1]
        gate = gate.to(a.dtype)
        out = torch.empty(
            (a.shape[0], 2 * half, *a.shape[2:]), dtype=a.dtype, device=a.device, memory_format=torch.channels_last
        )
        torch.mul(a, gate[:, :half], out=out[:, :half])
        torch.mul(b, gate[:, half:], out=out[:, half:])
        ctx.passed = passed
        ctx.save_for_backward(a, b, gate)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (grad,) = grads
        a, b, gate = ctx.saved_tensors
        half = a.shape[1]
        ctx.passed.append((grad, gate))
        halves = (grad[:, :half] * a).sum((2, 3), keepdim=True), (grad[:, half:] * b).sum((2, 3), keepdim=True)
        return torch.cat(halves, 1), None, None, None


class SemiChannelConv(nn.Module):
    """SC: `(N, C, H, W) -> (N, C, H, W)`.

    `first` chooses the gate: two fully connected layers (squeeze by four) for the first SC of a block, a 1-D
    convolution across channels for the second.
    """

    def __init__(self, channels: int, first: bool) -> None:
        super().__init__()
        half = channels // 2
        self.dense = conv_bn(channels, half, 3)
        self.depthwise = conv_bn(half, half, 3, groups=half)
        self.first = first
        if first:
            self.gate = nn.Sequential(
                nn.Linear(channels, channels // 4), nn.ReLU(inplace=True), nn.Linear(channels // 4, channels)
            )
        else:
            kernel = eca_kernel(channels)
            self.gate = nn.Sequential(nn.Conv1d(1, 1, kernel, padding=kernel // 2, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        a = self.dense(x)
        b = self.depthwise(a)
        fused = self.training and torch.is_grad_enabled()
        passed: list[tuple[Tensor, Tensor]] = []
        if fused:
            pooled: Tensor = PooledHalves.apply(a, b, passed)  # (N, C)
        else:
            pooled = torch.cat([a.mean((2, 3)), b.mean((2, 3))], 1)
        gate = self.gate(pooled) if self.first else self.gate(pooled.unsqueeze(1)).squeeze(1)
        gate = gate.sigmoid()[:, :, None, None]
        if fused:
            out: Tensor = GatedHalves.apply(gate, a.detach(), b.detach(), passed)
            return out
        joined: Tensor = torch.cat([a, b], 1) * gate
        return joined


class FoldedSemiChannelConv(nn.Module):
    """SC for inference, made from a trained one, whose layers it shares: `(N, C, H, W) -> (N, C, H, W)`."""

    def __init__(self, trained: SemiChannelConv) -> None:
        super().__init__()
        self.dense, self.depthwise = trained.dense, trained.depthwise
        if trained.first:
            squeeze, _, widen = trained.gate
            assert isinstance(squeeze, nn.Linear)
            assert isinstance(widen, nn.Linear)
            layers = [_pointwise(squeeze.weight, squeeze.bias), nn.ReLU(), _pointwise(widen.weight, widen.bias)]
        else:
            [across] = trained.gate
            assert isinstance(across, nn.Conv1d)
            channels = 2 * next(trained.dense.parameters()).shape[0]
            layers = [_pointwise(_band(across.weight[0, 0], channels), None)]
        self.gate = nn.Sequential(*layers, nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        a = self.dense(x)
        joined = torch.cat([a, self.depthwise(a)], 1)
        gated: Tensor = joined * self.gate(joined.mean((2, 3), keepdim=True))
        return gated


def _pointwise(weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    """The 1x1 convolution with a (outputs, inputs) matrix."""
    layer = nn.Conv2d(weight.shape[1], weight.shape[0], 1, bias=bias is not None).requires_grad_(False)
    layer.weight = nn.Parameter(weight.detach()[:, :, None, None], requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return layer.eval()


def _band(taps: Tensor, channels: int) -> Tensor:
    """(channels, channels): the matrix of a 1-D convolution with zero padding, `taps` around its diagonal."""
    reach = len(taps) // 2
    lines = [torch.diag(tap.expand(channels - abs(i - reach)), i - reach) for i, tap in enumerate(taps)]
    return torch.stack(lines).sum(0)


class SemiChannelBlock(nn.Module):
    """SCR: `ReLU(x + SC_2(SC_1(x)))`, the replacement of HRNet's basic block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = SemiChannelConv(channels, first=True)
        self.conv2 = SemiChannelConv(channels, first=False)

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = self.conv2(self.conv1(x)) + x
        return total.relu_()
