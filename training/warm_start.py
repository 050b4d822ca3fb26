"""Start from a weight package instead of from random weights, even where its skeleton or its width is another one."""

import logging

import torch
from torch import Tensor, nn

from model.package import load_package
from model.skeletons import Skeleton, map_joints
from training.config import ConfigError

log = logging.getLogger("pose.training")


def warm_start(network: nn.Module, package_name: str, skeleton: Skeleton) -> str:
    """Copy a package's weights into `network`; heatmaps are matched by joint name.

    Everything but the last layer is taken as it is. A joint of `skeleton` that the package knows under the same name
    takes over its heatmap; the others keep their fresh weights. A network of half the package's width takes every
    second channel, which is a start, not yet a network to use (docs/training.md has figures).

    Args:
        package_name: a bundled package's name or a folder.
        skeleton: of `network`.

    Returns:
        Which package it was: name, version, checksum.

    Raises:
        PackageError: no such package, or a damaged one.
        ConfigError: its architecture is neither the network's nor the same of twice the width.
    """
    package = load_package(package_name)
    whole, target = package.network.state_dict(), network.state_dict()
    source = dict(whole)
    unfit = source.keys() ^ target.keys()
    for name in source.keys() & target.keys():
        shape = target[name].shape
        if name.startswith("head."):  # its outputs are joints
            shape = torch.Size([len(package.skeleton), *shape[1:]])
        try:
            source[name] = narrowed(source[name], shape)
        except ValueError:
            unfit.add(name)
    if unfit:
        raise ConfigError(
            f"init: package {package_name!r} is a {package.card.architecture.name} "
            f"({package.card.architecture.switches or 'default switches'}), not the configured network or one of "
            f"twice its width: they differ in {len(unfit)} layers, such as {min(unfit)}"
        )
    mapping = map_joints(package.skeleton.joints, skeleton.joints)
    known = torch.from_numpy(mapping >= 0)
    for name in ("head.weight", "head.bias"):
        fresh = target[name].clone()
        fresh[known] = source[name].to(fresh.device)[mapping[mapping >= 0]]
        source[name] = fresh
    network.load_state_dict(source)
    card = package.card
    part = "" if source["head.weight"].shape[1] == whole["head.weight"].shape[1] else ", a part of its channels"
    log.info("starting from %s %s, %d of %d joints%s", card.name, card.version, known.sum(), len(skeleton), part)
    return card.identity


def narrowed(weights: Tensor, shape: torch.Size) -> Tensor:
    """A layer's weights for half the network's width.

    Args:
        weights: (outputs, inputs, ...), as layers hold them, or (outputs,), or a scalar.
        shape: of the same dimensions. Outputs are as many or half, every second one. Of the inputs every second one
            goes from the front on, until none is too many: where they are the network's width and something else, as
            in the dense pyramid, the width comes first. Of a kernel the middle stays.

    Returns:
        `weights` where it has `shape`. Inputs are scaled up for those that went.

    Raises:
        ValueError: they cannot get `shape` so.
    """
    if weights.dim() != len(shape):
        raise ValueError(f"{tuple(weights.shape)} cannot become {tuple(shape)}")
    for axis, (size, wanted) in enumerate(zip(weights.shape, shape, strict=True)):
        surplus = size - wanted
        fits = surplus in (0, size / 2) if axis == 0 else 0 <= surplus <= size / 2
        if not fits:
            raise ValueError(f"{tuple(weights.shape)} cannot become {tuple(shape)}")
        if axis > 1:
            weights = weights.narrow(axis, surplus // 2, wanted)
        elif surplus:
            kept = [*range(0, 2 * surplus, 2), *range(2 * surplus, size)]
            weights = weights.index_select(axis, torch.tensor(kept, device=weights.device))
            if axis == 1:
                weights = weights * (size / wanted)
    return weights
