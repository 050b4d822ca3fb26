"""PyTorch: bf16 and channels-last on a GPU; on the CPU the float32 reference that other engines are held to."""

import numpy as np
import torch
from torch import Tensor, nn


class TorchEngine:
    """One network, for one thread.

    Args:
        network: one tensor in, one tensor out; it is moved to `device`.
        device: `cuda` or `cpu`.
        precision: `bf16` or `f32`.
    """

    def __init__(self, network: nn.Module, device: str, precision: str) -> None:
        self.device = torch.device(device)
        self.network = network.eval().requires_grad_(False).to(self.device).to(memory_format=torch.channels_last)
        self.low = precision == "bf16"

    def __call__(self, crops: np.ndarray) -> Tensor:
        """Inputs (N, ...) -> the network's output (N, ...) on `device`."""
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.low):
            outputs: Tensor = self.network(torch.from_numpy(crops).to(self.device))
        return outputs


class Float32Head(nn.Module):
    """A network's last layer in float32 while the rest runs in bf16: decoding needs its fine steps."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            heatmaps: Tensor = self.head(features.float())
        return heatmaps
