"""Parameters and multiply-accumulates of a network, counted as HRNet's papers count them."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def count_parameters(network: nn.Module) -> int:
    """All parameters, trainable or not."""
    return sum(p.numel() for p in network.parameters())


def count_macs(network: nn.Module, input_size: tuple[int, int]) -> int:
    """Multiply-accumulates of convolutions, linear layers and matrix products for one `(height, width)` picture.

    The papers' "GFLOPs" are these divided by 2^30.
    """
    device = next(network.parameters()).device
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(torch.zeros(1, 3, *input_size, device=device))
    finally:
        network.train(was_training)
    return int(counter.get_total_flops() // 2)
