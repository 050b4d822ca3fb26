"""Folding changes no output, and nothing of the network that is folded."""

import pytest
import torch
from torch import nn

from model.folding import fold
from model.networks import NETWORKS, build
from model.networks.semi_channel import SemiChannelConv


def norms(network: nn.Module) -> int:
    return sum(isinstance(layer, nn.BatchNorm2d) for layer in network.modules())


@pytest.mark.parametrize("name", NETWORKS)
def test_every_batch_norm_and_gate_is_folded_and_outputs_stay(name: str) -> None:
    torch.manual_seed(0)
    network = build(name, 17).double()  # in float32 the order of sums shows
    noise = torch.randn(2, 3, 64, 48, dtype=torch.float64)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None  # running statistics of the noise, so that activations keep their size
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.1)
    with torch.no_grad():
        network.train()(noise)
        expected = network.eval()(noise)
        network.head.weight *= 1 / expected.std()
        expected = network(noise)
        before = {key: value.clone() for key, value in network.state_dict().items()}
        folded = fold(network)
        found = folded(noise)
    assert expected.std() > 0.5
    assert (found - expected).abs().max() < 1e-9
    assert norms(folded) == 0
    assert not any(isinstance(layer, SemiChannelConv) for layer in folded.modules())
    assert norms(network) > 100
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_a_batch_norm_without_its_convolution_stays() -> None:
    network = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.ReLU(), nn.BatchNorm2d(3)).eval()
    assert norms(fold(network)) == 2
