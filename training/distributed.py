"""One process or many: what `torchrun` starts becomes one training run with one global batch.

Every process takes its share of every batch. Batch statistics, the loss and its weights are totals over all of them,
so a run on several processes computes what one process computes, up to the rounding of sums.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Workers:
    """This process's place among `size` processes, by default alone; `device` is its own."""

    rank: int = 0
    size: int = 1
    device: torch.device = CPU

    @property
    def first(self) -> bool:
        """Whether this process is the one that validates, writes, logs and shows progress."""
        return self.rank == 0

    def total(self, value: Tensor) -> Tensor:
        """Sum over all processes; no gradient flows through it."""
        value = value.detach().clone()
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def any(self, flag: bool) -> bool:
        """Whether any process says so; all get the same answer."""
        return (self.size > 1 and bool(self.total(torch.tensor(float(flag), device=self.device)) > 0)) or flag

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def join_workers() -> Iterator[Workers]:
    """The processes that `torchrun` started, joined by NCCL on GPUs and gloo on CPUs; alone, a single one."""
    cuda = torch.cuda.is_available()
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Workers(0, 1, torch.device("cuda" if cuda else "cpu"))
        return
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if cuda else "gloo")
    workers = Workers(dist.get_rank(), size, device)
    if not workers.first:  # what all would say, the first one says
        logging.getLogger("pose").setLevel(logging.ERROR)
    try:
        yield workers
    finally:
        dist.destroy_process_group()


class _Mean(torch.autograd.Function):
    """Mean over the processes, forward and backward."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:  # noqa: ARG004 - autograd's signature
        value = value.clone()
        dist.all_reduce(value)
        return value / dist.get_world_size()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:  # noqa: ARG004 - autograd's signature
        (grad,) = grads
        grad = grad.contiguous().clone()
        dist.all_reduce(grad)
        return grad / dist.get_world_size()


class SharedBatchNorm(nn.BatchNorm2d):
    """Batch norm over the crops of all processes, on any device; PyTorch's own runs on GPUs only.

    Every process must hold the same number of crops.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        x = input.float()
        moments: Tensor = _Mean.apply(torch.stack([x.mean((0, 2, 3)), (x * x).mean((0, 2, 3))]))
        mean, variance = moments[0], moments[1] - moments[0] ** 2
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            count = x.numel() / x.shape[1] * dist.get_world_size()
            momentum = self.momentum or 0.1
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), momentum)
            self.num_batches_tracked += 1
        scale = self.weight * (variance + self.eps).rsqrt()
        shift = self.bias - mean * scale
        return torch.addcmul(shift[:, None, None], x, scale[:, None, None]).to(input.dtype)


def share_batch_norms(network: nn.Module) -> None:
    """Replace every batch norm of `network` by one over all processes; names and values of its state stay."""
    for module in network.modules():
        for name, child in module.named_children():
            if type(child) is nn.BatchNorm2d:
                shared = SharedBatchNorm(child.num_features, child.eps, child.momentum)
                shared.load_state_dict(child.state_dict())
                setattr(module, name, shared.train(child.training))
