"""Layers shared by every network family: convolution-BN-ReLU and the two residual blocks of ResNet and HRNet.

Source of the block definitions: He et al., "Deep Residual Learning for Image Recognition" (CVPR 2016).
"""

from torch import Tensor, nn


def conv_bn(
    inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1, groups: int = 1, relu: bool = True
) -> nn.Sequential:
    """Convolution without bias, batch norm and, unless `relu` is false, ReLU; "same" padding for odd kernels."""
    padding = dilation * (kernel // 2)
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    if relu:
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut; HRNet's block. `(N, C, H, W) -> (N, C, H, W)`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = conv_bn(channels, channels, 3)
        self.conv2 = conv_bn(channels, channels, 3, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = self.conv2(self.conv1(x)) + x
        return total.relu_()


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions (widening by four) around a shortcut; the stem's block.

    `(N, inputs, H, W) -> (N, 4 * channels, H, W)`.
    """

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        outputs = 4 * channels
        self.body = nn.Sequential(
            conv_bn(inputs, channels, 1), conv_bn(channels, channels, 3), conv_bn(channels, outputs, 1, relu=False)
        )
        self.shortcut = nn.Identity() if inputs == outputs else conv_bn(inputs, outputs, 1, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = self.body(x) + self.shortcut(x)
        return total.relu_()
