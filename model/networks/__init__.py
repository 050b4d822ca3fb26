"""Every network by name: `build("sdhrnet_w32", joints=17)`.

A network maps `(N, 3, H, W)` float, RGB, ImageNet-normalised, to raw heatmaps `(N, joints, H/4, W/4)`.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from model.networks.sdhrnet import SDHRNet

NETWORKS: Mapping[str, Mapping[str, Any]] = {
    "sdhrnet_w32": {"width": 32},
    "sdhrnet_w16": {"width": 16},
    "hrnet_w32": {"width": 32, "scr": False, "dasp": False, "sem": False},
}


def build(name: str, joints: int, **switches: Any) -> nn.Module:
    """The network `name` with `joints` heatmaps; `switches` (`width`, `scr`, `dasp`, `sem`) override its own.

    Raises:
        ValueError: unknown name or switch.
    """
    if name not in NETWORKS:
        raise ValueError(f"unknown network {name!r}; known: {', '.join(NETWORKS)}")
    unknown = switches.keys() - {"width", "scr", "dasp", "sem"}
    if unknown:
        raise ValueError(f"unknown switches of {name}: {', '.join(sorted(unknown))}; known: width, scr, dasp, sem")
    return SDHRNet(joints, **{**NETWORKS[name], **switches})
