"""Networks: the paper's sizes, and what must hold for every registered one."""

from collections import defaultdict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from model.networks import NETWORKS, build
from model.networks.blocks import BasicBlock
from model.networks.complexity import count_macs, count_parameters
from model.networks.semi_channel import GatedHalves, PooledHalves, SemiChannelBlock, eca_kernel

# Tables 1 to 3 of the paper: parameters / 1e6 and multiply-accumulates / 2^30
PAPER = [
    pytest.param("hrnet_w32", {}, 17, (256, 192), 28.5, 7.1, id="HRNet-W32 on COCO"),
    pytest.param("hrnet_w32", {}, 16, (256, 256), 28.5, 9.5, id="HRNet-W32 on MPII"),
    pytest.param("sdhrnet_w32", {"dasp": False, "sem": False}, 17, (256, 192), 16.7, 4.4, id="SCR only"),
    pytest.param("sdhrnet_w32", {"sem": False}, 17, (256, 192), 16.7, 4.5, id="SCR and DASP"),
    pytest.param("sdhrnet_w32", {}, 17, (256, 192), 16.8, 4.5, id="SDHRNet on COCO"),
    pytest.param("sdhrnet_w32", {}, 16, (256, 256), 16.8, 6.0, id="SDHRNet on MPII"),
]


@pytest.mark.parametrize(("name", "switches", "joints", "size", "millions", "gigas"), PAPER)
def test_sizes_are_the_papers(
    name: str, switches: dict[str, Any], joints: int, size: tuple[int, int], millions: float, gigas: float
) -> None:
    network = build(name, joints, **switches)
    assert round(count_parameters(network) / 1e6, 1) == millions
    assert round(count_macs(network, size) / 2**30, 1) == gigas


def test_the_narrow_network_has_its_documented_size() -> None:
    network = build("sdhrnet_w16", 17)
    assert round(count_parameters(network) / 1e6, 3) == 4.542
    assert round(count_macs(network, (256, 192)) / 1e9, 3) == 2.099


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("size", [(64, 48), (68, 52)], ids=lambda size: f"{size[0]}x{size[1]}")
def test_heatmaps_are_finite_and_a_quarter_of_the_input(name: str, size: tuple[int, int]) -> None:
    with torch.inference_mode():
        heatmaps = build(name, 5).eval()(torch.randn(2, 3, *size))
    assert heatmaps.shape == (2, 5, size[0] // 4, size[1] // 4)
    assert heatmaps.isfinite().all()


@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_gets_a_gradient(name: str) -> None:
    largest: dict[str, float] = defaultdict(float)
    for seed in range(3):  # in a single draw all four hidden units of a narrow gate can be dead
        torch.manual_seed(seed)
        network = build(name, 3).train()
        for key, parameter in network.named_parameters():
            if key == "enhance.scale":  # starts at zero, which would hide the attention's gradients
                parameter.data.fill_(0.5)
        network(torch.randn(2, 3, 64, 64)).square().mean().backward()
        for key, parameter in network.named_parameters():
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key
            largest[key] = max(largest[key], float(parameter.grad.abs().max()))
    cancelled = largest.pop("enhance.key.bias", 0.0)  # in the softmax
    assert cancelled < 1e-5
    assert [key for key, value in largest.items() if value == 0] == []


@pytest.mark.parametrize("name", NETWORKS)
def test_a_batch_gives_what_each_picture_gives_alone(name: str) -> None:
    torch.manual_seed(0)
    network = build(name, 4).double().eval()
    pictures = torch.randn(2, 3, 64, 48, dtype=torch.float64)
    with torch.inference_mode():
        together = network(pictures)
        alone = torch.cat([network(picture[None]) for picture in pictures])
    assert (together - alone).abs().max() < 1e-9 * alone.abs().max()


def test_semi_channel_block_costs_what_equation_14_says() -> None:
    def convolutions(block: nn.Module) -> int:
        pixels = 16 * 16
        return sum(pixels * layer.weight.numel() for layer in block.modules() if isinstance(layer, nn.Conv2d))

    light, basic = SemiChannelBlock(32), BasicBlock(32)
    assert round(convolutions(light) / convolutions(basic), 3) == 0.516
    assert round(count_parameters(light) / count_parameters(basic), 3) == 0.549


@pytest.mark.parametrize(("channels", "kernel"), [(16, 3), (32, 3), (64, 3), (128, 5), (256, 5)])
def test_eca_kernel_is_odd_and_grows_with_the_channels(channels: int, kernel: int) -> None:
    assert eca_kernel(channels) == kernel


def test_fused_gate_and_pooling_equal_the_plain_operations_in_value_and_gradient() -> None:
    torch.manual_seed(0)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    a, b, weights = leaf(2, 3, 5, 4), leaf(2, 3, 5, 4), leaf(6, 6)
    grad = torch.randn(2, 6, 5, 4, dtype=torch.float64)
    passed: list[tuple[Tensor, Tensor]] = []
    gate = (PooledHalves.apply(a, b, passed) @ weights).sigmoid()[:, :, None, None]
    fused = GatedHalves.apply(gate, a.detach(), b.detach(), passed)
    joined = torch.cat([a, b], 1)
    plain = joined * (joined.mean((2, 3)) @ weights).sigmoid()[:, :, None, None]
    torch.testing.assert_close(fused, plain)
    for mine, theirs in zip(
        torch.autograd.grad(fused, (a, b, weights), grad),
        torch.autograd.grad(plain, (a, b, weights), grad),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize(("name", "switches"), [("resnet", {}), ("hrnet_w32", {"depth": 3})])
def test_unknown_names_and_switches_are_named(name: str, switches: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"resnet|depth"):
        build(name, 17, **switches)
