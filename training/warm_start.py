"""Start from a weight package instead of from random weights, even where its skeleton is another one."""

import logging

import torch
from torch import nn

from model.package import load_package
from model.skeletons import Skeleton, map_joints
from training.config import ConfigError

log = logging.getLogger("pose.training")


def warm_start(network: nn.Module, package_name: str, skeleton: Skeleton) -> str:
    """Copy a package's weights into `network`; heatmaps are matched by joint name.

    Everything but the last layer is taken as it is. A joint of `skeleton` that the package knows under the same name
    takes over its heatmap; the others keep their fresh weights.

    Args:
        package_name: a bundled package's name or a folder.
        skeleton: of `network`.

    Returns:
        Which package it was: name, version, checksum.

    Raises:
        PackageError: no such package, or a damaged one.
        ConfigError: its architecture is not the network's.
    """
    package = load_package(package_name)
    source, target = dict(package.network.state_dict()), network.state_dict()
    unfit = [
        name
        for name in source.keys() | target.keys()
        if name not in source or name not in target or source[name].shape[1:] != target[name].shape[1:]
    ]
    if unfit:
        raise ConfigError(
            f"init: package {package_name!r} is a {package.card.architecture.name} "
            f"({package.card.architecture.switches or 'default switches'}), not the configured network: they differ in "
            f"{len(unfit)} layers, such as {min(unfit)}"
        )
    mapping = map_joints(package.skeleton.joints, skeleton.joints)
    known = torch.from_numpy(mapping >= 0)
    for name in ("head.weight", "head.bias"):
        fresh = target[name].clone()
        fresh[known] = source[name].to(fresh.device)[mapping[mapping >= 0]]
        source[name] = fresh
    network.load_state_dict(source)
    card = package.card
    log.info("starting from %s %s, %d of %d joints", card.name, card.version, known.sum(), len(skeleton))
    return card.identity
