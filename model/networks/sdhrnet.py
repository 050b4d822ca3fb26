"""SDHRNet and, with its switches off, HRNet: parallel branches of four resolutions that keep exchanging features.

Sources: "Lightweight Multi-Resolution Network for Human Pose Estimation" (CMES 138(3), 2023) for SCR, DASP and SEM;
Sun et al., "Deep High-Resolution Representation Learning" (CVPR 2019) for the body; Wang et al., "ECA-Net"
(CVPR 2020) for the adaptive kernel. Sizes the paper leaves open are set so that parameters and multiply-accumulates
come out as its tables print them (`tests/model/test_networks.py`).
"""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.networks.blocks import BasicBlock, Bottleneck, conv_bn
from model.networks.semi_channel import SemiChannelBlock, eca_kernel

MODULES = (1, 4, 3)  # multi-resolution modules in stages 1, 2 and 3
BLOCKS = 4  # residual blocks per branch and module


class Exchange(nn.Module):
    """HRNet's exchange unit: every output resolution is the ReLU of the sum of all inputs, resampled to it.

    Upward: 1x1 convolution and nearest up-sampling to the target's size. Downward: a chain of 3x3 stride-2
    convolutions, ReLU between them. `outputs` < number of inputs leaves the lower resolutions out.
    """

    def __init__(self, channels: list[int], outputs: int) -> None:
        super().__init__()
        self.paths = nn.ModuleList(
            nn.ModuleList(self._path(channels, source, target) for source in range(len(channels)))
            for target in range(outputs)
        )

    @staticmethod
    def _path(channels: list[int], source: int, target: int) -> nn.Module:
        if source == target:
            return nn.Identity()
        if source > target:
            return conv_bn(channels[source], channels[target], 1, relu=False)
        steps = target - source
        return nn.Sequential(
            *(conv_bn(channels[source], channels[source], 3, stride=2) for _ in range(steps - 1)),
            conv_bn(channels[source], channels[target], 3, stride=2, relu=False),
        )

    def forward(self, branches: list[Tensor]) -> list[Tensor]:
        fused = []
        for target, paths in enumerate(self.paths):
            assert isinstance(paths, nn.ModuleList)
            size = branches[target].shape[-2:]
            total: Tensor | None = None
            for source, path in enumerate(paths):
                term = path(branches[source])
                if source > target:
                    term = F.interpolate(term, size=size, mode="nearest")
                total = term if total is None else total + term
            assert total is not None
            fused.append(total.relu())
        return fused


class MultiResolutionModule(nn.Module):
    """Four residual blocks on every branch, then one exchange unit."""

    def __init__(self, channels: list[int], outputs: int, scr: bool) -> None:
        super().__init__()
        block = SemiChannelBlock if scr else BasicBlock
        self.branches = nn.ModuleList(nn.Sequential(*(block(c) for _ in range(BLOCKS))) for c in channels)
        self.exchange = Exchange(channels, outputs)

    def forward(self, branches: list[Tensor]) -> list[Tensor]:
        fused: list[Tensor] = self.exchange([branch(x) for branch, x in zip(self.branches, branches, strict=True)])
        return fused


class SpatialEnhancement(nn.Module):
    """SEM: a channel gate and a pixel-to-pixel attention side by side, summed. `(N, C, H, W) -> (N, C, H, W)`.

    The bias of `key` cancels in the softmax, so its gradient is zero; the paper's parameter count includes it.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        kernel = eca_kernel(channels)
        self.channel = nn.Conv1d(1, 1, kernel, padding=kernel // 2, bias=False)
        self.query = nn.Conv2d(channels, channels // 8, 1)
        self.key = nn.Conv2d(channels, channels // 8, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.scale = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean((2, 3)).unsqueeze(1)  # (N, 1, C)
        gate = F.hardsigmoid(self.channel(pooled)).transpose(1, 2).unsqueeze(-1)  # (N, C, 1, 1)
        query, key, value = (layer(x).flatten(2) for layer in (self.query, self.key, self.value))  # (N, C', H * W)
        attention = (query.transpose(1, 2) @ key).softmax(-1)  # (N, H * W, H * W), each row sums to one
        attended = (value @ attention.transpose(1, 2)).view_as(x)
        enhanced: Tensor = x * gate + (self.scale * attended + x)
        return enhanced


class AtrousPyramid(nn.Module):
    """DASP: densely connected 3x3 convolutions of dilation 6, 12 and 18 on the high-resolution features, joined with
    the stem's low-order features. `(N, w, H, W), (N, 256, H, W) -> (N, w, H, W)`."""

    GROWTH = 16
    DILATIONS = (6, 12, 18)

    def __init__(self, width: int, low_order: int) -> None:
        super().__init__()
        widths = [width + self.GROWTH * i for i in range(len(self.DILATIONS) + 1)]
        self.atrous = nn.ModuleList(
            conv_bn(inputs, self.GROWTH, 3, dilation=dilation)
            for inputs, dilation in zip(widths[:-1], self.DILATIONS, strict=True)
        )
        self.dense = conv_bn(widths[-1], width, 1)
        self.low_order = conv_bn(low_order, width, 1)
        self.join = conv_bn(2 * width, width, 1)

    def forward(self, x: Tensor, low_order: Tensor) -> Tensor:
        for layer in self.atrous:
            x = torch.cat([x, layer(x)], 1)
        joined: Tensor = self.join(torch.cat([self.dense(x), self.low_order(low_order)], 1))
        return joined


class SDHRNet(nn.Module):
    """The network: `(N, 3, H, W)` float, RGB, ImageNet-normalised -> `(N, joints, H/4, W/4)` raw heatmaps.

    Args:
        joints: number of heatmaps.
        width: channels of the highest-resolution branch (32 in the paper).
        scr: semi-channel residual blocks in place of HRNet's basic blocks.
        dasp: dense atrous pyramid before the head.
        sem: spatial enhancement of the 1/32-resolution branch where it is made.

    Height and width must be divisible by 4. With all three switches off this is HRNet.
    """

    def __init__(self, joints: int, width: int = 32, scr: bool = True, dasp: bool = True, sem: bool = True) -> None:
        super().__init__()
        low_order = 256
        channels = [width * 2**i for i in range(4)]
        self.stem = nn.Sequential(conv_bn(3, 64, 3, stride=2), conv_bn(64, 64, 3, stride=2))
        self.low_order = nn.Sequential(Bottleneck(64, 64), *(Bottleneck(low_order, 64) for _ in range(3)))
        self.entry = nn.ModuleList([conv_bn(low_order, channels[0], 3), conv_bn(low_order, channels[1], 3, stride=2)])
        self.widen = nn.ModuleList(conv_bn(channels[i], channels[i + 1], 3, stride=2) for i in (1, 2))
        self.enhance = SpatialEnhancement(channels[3]) if sem else nn.Identity()
        module = partial(MultiResolutionModule, scr=scr)
        self.stages = nn.ModuleList()
        for stage, modules in enumerate(MODULES):
            branches = stage + 2
            outputs = [branches] * modules
            if stage == len(MODULES) - 1:
                outputs[-1] = 1  # pose needs the highest resolution only
            self.stages.append(nn.ModuleList(module(channels[:branches], count) for count in outputs))
        self.pyramid = AtrousPyramid(width, low_order) if dasp else None
        self.head = nn.Conv2d(width, joints, 1)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        low_order = self.low_order(self.stem(x))
        branches = [layer(low_order) for layer in self.entry]
        for number, stage in enumerate(self.stages):
            assert isinstance(stage, nn.ModuleList)
            if number:
                new = self.widen[number - 1](branches[-1])
                branches.append(self.enhance(new) if number == len(self.stages) - 1 else new)
            for module in stage:
                branches = module(branches)
        top = branches[0] if self.pyramid is None else self.pyramid(branches[0], low_order)
        heatmaps: Tensor = self.head(top)
        return heatmaps


def initialise(network: nn.Module) -> None:
    """He initialisation for every convolution; a near-zero head, so that training starts from flat heatmaps."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    head = network.head
    assert isinstance(head, nn.Conv2d)
    nn.init.normal_(head.weight, std=1e-3)
