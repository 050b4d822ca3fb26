"""Knowledge distillation: a weight package's heatmaps as soft targets beside the labels.

Hinton et al., "Distilling the Knowledge in a Neural Network" (2015), on heatmaps: every joint the teacher knows by
name gets a target, labelled or not, with all the teacher's doubt in it.
"""

import torch
from torch import Tensor

from model.card import IMAGENET_MEAN, IMAGENET_STD
from model.codec import HeatmapCodec
from model.package import load_package
from model.skeletons import Skeleton, map_joints
from training.config import ConfigError


class Teacher:
    """A package's network, in evaluation mode.

    Args:
        package_name: a bundled package's name or a folder.
        skeleton: of the student.

    Raises:
        PackageError: no such package, or a damaged one.
        ConfigError: it knows none of the student's joints, or reads pictures in another way.
    """

    def __init__(self, package_name: str, skeleton: Skeleton, device: torch.device) -> None:
        package = load_package(package_name)
        self.card = package.card
        mapping = map_joints(package.skeleton.joints, skeleton.joints)
        if (mapping < 0).all():
            raise ConfigError(f"distillation: {package_name} knows no joint of skeleton {skeleton.name}")
        if (self.card.normalisation.mean, self.card.normalisation.std) != (IMAGENET_MEAN, IMAGENET_STD):
            raise ConfigError(f"distillation: {package_name} normalises pictures in a way of its own")
        self.known = torch.from_numpy(mapping >= 0).to(device)
        self.mapping = torch.from_numpy(mapping.clip(min=0)).to(device)
        self.network = package.network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.network.requires_grad_(False)

    @torch.no_grad()
    def targets(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Soft targets of normalised crops (N, 3, H, W), which may have any size.

        Returns:
            heatmaps (N, K, H/4, W/4) float32 of the student's joints, as `HeatmapCodec.activate` gives them and not
            below 0, and weights (N, K): 1 for joints the teacher knows, else 0.
        """
        size = int(pixels.shape[2]), int(pixels.shape[3])
        sigma = self.card.codec.sigma * size[0] / self.card.input_size[0]
        codec = HeatmapCodec(size, sigma, self.card.codec.activation)
        heatmaps = codec.activate(self.network(pixels)).clamp(min=0)[:, self.mapping]
        return heatmaps, self.known.float().expand(len(pixels), -1)
