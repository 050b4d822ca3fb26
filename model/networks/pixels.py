"""A network as engines run it: bytes in."""

import torch
from torch import Tensor, nn

from model.card import Card


class PixelNetwork(nn.Module):
    """A network with its normalisation in front: `(N, H, W, 3)` uint8 RGB -> raw heatmaps `(N, K, H/4, W/4)`."""

    def __init__(self, network: nn.Module, card: Card) -> None:
        super().__init__()
        self.network = network
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", 255 * torch.tensor(card.normalisation.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(card.normalisation.std).view(1, 3, 1, 1), persistent=False)

    def forward(self, crops: Tensor) -> Tensor:
        pixels = crops.permute(0, 3, 1, 2).float()
        heatmaps: Tensor = self.network((pixels - self.mean) / self.std)
        return heatmaps
