"""Checkpoints of a run: written beside and renamed, so that the last one is whole whatever happens."""

import copy
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from model.errors import UserError

LATEST, TRUNK = "checkpoint.pt", "before_decay.pt"


class CheckpointError(UserError):
    """A checkpoint cannot be written or read; the message says what stands."""


class Average:
    """Exponential moving average of a network's weights and buffers.

    The decay starts low and rises to `decay`, so that the average is useful from the first validation on.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Move the average towards `network` after optimiser step `step`."""
        decay = min(self.decay, (1 + step) / (10 + step))
        mine, theirs = self.network.state_dict(), network.state_dict()
        pairs = [(mine[k], theirs[k]) for k in mine if mine[k].is_floating_point()]
        torch._foreach_lerp_([a for a, _ in pairs], [b for _, b in pairs], 1 - decay)
        for key, value in mine.items():
            if not value.is_floating_point():
                value.copy_(theirs[key])


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` beside `path`, then rename.

    Raises:
        CheckpointError: the disk does not take it; what was at `path` stays.
    """
    beside = path.with_suffix(".partial")
    try:
        torch.save(state, beside)
        beside.replace(path)
    except (OSError, RuntimeError) as error:  # PyTorch's writer turns a full disk into a RuntimeError
        free = shutil.disk_usage(path.parent).free
        raise CheckpointError(
            f"{path} cannot be written ({free / 1e6:.0f} MB free on its disk): {str(error).splitlines()[0]}; the "
            "checkpoint before it is whole: make room and run the same command to go on"
        ) from None
    finally:
        beside.unlink(missing_ok=True)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of ours; only tensors and plain values are accepted, no code.

    Raises:
        CheckpointError: damaged, or not ours.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - PyTorch's reader raises anything on bytes that are no checkpoint
        reason = (str(error).splitlines() or [""])[0]
        raise CheckpointError(f"{path} cannot be read, it is damaged or no checkpoint: {reason}") from None
    return state
