"""One run's state and its optimiser step: the network, its average, the optimiser, and how many samples they saw."""

import contextlib
import logging
import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model.card import IMAGENET_MEAN, IMAGENET_STD
from model.codec import HeatmapCodec
from model.cpu import has_bf16
from model.errors import UserError
from model.networks import build
from model.skeletons import SKELETONS
from training.checkpoint import Average, load_checkpoint, save_checkpoint
from training.config import ConfigError, Phase, TrainConfig
from training.distillation import Teacher
from training.distributed import Workers, share_batch_norms
from training.loader import Batch
from training.losses import counted, heatmap_loss
from training.people import Person
from training.warm_start import warm_start

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16, "float32": torch.float32}

log = logging.getLogger("pose.training")


class NotFiniteError(UserError):
    """The loss is no longer a number; the message names the pictures of the batch."""


class Trainer:
    """State of one run, in every process of it.

    Args:
        config: with every phase's length in samples (`TrainConfig.resolve`).
        run: folder for checkpoints.
    """

    def __init__(self, config: TrainConfig, run: Path, workers: Workers) -> None:
        self.config, self.run, self.workers, self.device = config, run, workers, workers.device
        self.skeleton = SKELETONS[config.skeleton]
        torch.manual_seed(config.seed)
        network = build(config.network, len(self.skeleton), **config.switches)
        self.started_from = None if config.init is None else warm_start(network, config.init, self.skeleton)
        self.network = network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = Average(self.network, config.ema)
        self.parallel: nn.Module = self.network
        if workers.size > 1:
            if config.sync_batch_norm:
                share_batch_norms(self.network)
            self.parallel = DistributedDataParallel(self.network, gradient_as_bucket_view=True)
        decayed = [p for p in self.network.parameters() if p.ndim > 1]
        plain = [p for p in self.network.parameters() if p.ndim <= 1]  # norms and biases
        groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
        self.precision = arithmetic(config.precision, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        self.teacher = None
        if config.distillation is not None:
            self.teacher = Teacher(config.distillation.teacher, self.skeleton, self.device)
        self.samples, self.step, self.rate = 0, 0, 0.0

    def save(self, name: str) -> None:
        """Write everything the run needs to go on.

        Raises:
            CheckpointError: the disk does not take it; what was there stays.
        """
        state = {
            "network": self.network.state_dict(),
            "average": self.average.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "samples": self.samples,
            "step": self.step,
            "started_from": self.started_from,
            "config": self.config.model_dump(mode="json"),
        }
        save_checkpoint(self.run / name, state)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            CheckpointError: it cannot be read.
            ConfigError: it is of another network.
        """
        state = load_checkpoint(path)
        for key in ("network", "switches", "skeleton"):
            before, now = state["config"][key], self.config.model_dump(mode="json")[key]
            if before != now:
                raise ConfigError(
                    f"{path} was trained with {key} {before!r}, the configuration says {now!r}: choose another run "
                    "folder (--output), or start from its package (--init)"
                )
        self.network.load_state_dict(state["network"])
        self.average.network.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.samples, self.step, self.started_from = state["samples"], state["step"], state["started_from"]

    def train_batch(self, batch: Batch, phase: Phase, codec: HeatmapCodec, people: list[Person]) -> float:
        """One optimiser step on this process's share of a batch; returns the loss of the whole batch.

        Raises:
            NotFiniteError: the loss or a gradient is infinite or not a number. No weight was changed.
        """
        crops, keypoints, weights, indices = batch
        self.rate = learning_rate(self.config, self.samples)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate
        self.network.train()
        self.optimizer.zero_grad(set_to_none=True)
        tensors = [tensor.to(self.device, non_blocking=True) for tensor in (crops, keypoints, weights)]
        # processes average their gradients, so each divides by an average process's share
        amount = self.workers.total(counted(tensors[2], self.config.hard_joints)) / self.workers.size
        total = torch.zeros((), device=self.device)
        parts = (tensor.chunk(phase.accumulate) for tensor in tensors)
        for number, (pixels, places, known) in enumerate(zip(*parts, strict=True), 1):
            with contextlib.nullcontext() if number == phase.accumulate else self._unshared():
                loss = self._loss(pixels, places, known, codec, amount, len(indices))
                self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        value = float(self.workers.total(total)) / self.workers.size
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip)
        if not math.isfinite(value) or not (self.scaler.is_enabled() or bool(norm.isfinite())):
            names = ", ".join(sorted({str(people[i].picture) for i in indices}))
            raise NotFiniteError(
                f"loss is {value}, gradient {float(norm)} at sample {self.samples}; pictures of the batch: {names}"
            )
        self.scaler.step(self.optimizer)  # in fp16, skips a step whose gradients overflow, and scales less
        self.scaler.update()
        self.step += 1
        self.samples += len(indices) * self.workers.size
        self.average.update(self.network, self.step)
        return value

    def autocast(self) -> torch.autocast:
        """The run's arithmetic, for the network's forward pass."""
        return torch.autocast(self.device.type, PRECISIONS[self.precision], enabled=self.precision != "float32")

    def _loss(
        self, crops: Tensor, keypoints: Tensor, weights: Tensor, codec: HeatmapCodec, amount: Tensor, batch: int
    ) -> Tensor:
        """A part's share of the loss of a batch whose labels count for `amount` and that has `batch` crops here."""
        config = self.config
        pixels = normalise(crops)
        with self.autocast():
            raw = self.parallel(pixels)
            soft = None if self.teacher is None else self.teacher.targets(pixels)
        loss = heatmap_loss(raw, codec.encode(keypoints), weights, config.loss, config.hard_joints) / amount
        if soft is not None and config.distillation is not None:
            heatmaps, known = soft
            share = config.distillation.weight
            learnt = heatmap_loss(raw, heatmaps, known, config.loss) / (counted(known[:1]) * batch)
            loss = (1 - share) * loss + share * learnt
        return loss

    def _unshared(self) -> contextlib.AbstractContextManager[None]:
        """Gradients stay here until the last part of the step."""
        if isinstance(self.parallel, DistributedDataParallel):
            return self.parallel.no_sync()
        return contextlib.nullcontext()


def normalise(crops: Tensor) -> Tensor:
    """(N, H, W, 3) uint8 RGB -> (N, 3, H, W) float32, ImageNet-normalised; channels-last in memory."""
    mean, std = (crops.new_tensor(v, dtype=torch.float32) * 255 for v in (IMAGENET_MEAN, IMAGENET_STD))
    return ((crops.float() - mean) / std).permute(0, 3, 1, 2)


def arithmetic(precision: str, device: torch.device) -> str:
    """`precision` with `auto` decided: bf16 where the hardware multiplies it, else float32."""
    fast = torch.cuda.is_bf16_supported(including_emulation=False) if device.type == "cuda" else has_bf16()
    if precision == "bf16" and not fast:
        name, better = ("GPU", "fp16") if device.type == "cuda" else ("CPU", "float32")
        log.warning("this %s only imitates bf16, slowly: precision %s is faster", name, better)
    return ("bf16" if fast else "float32") if precision == "auto" else precision


def learning_rate(config: TrainConfig, samples: int) -> float:
    """Linear warm-up, then the configuration's schedule: constant and falling along a cosine to zero, or in steps."""
    rate = config.learning_rate * min(1.0, (samples + 1) / max(1, config.warmup_samples))
    if config.schedule == "step":
        return rate * 0.1 ** sum(samples >= share * config.samples for share in config.decay_steps)
    start = config.decay_from * config.samples
    progress = max(0.0, (samples - start) / (config.samples - start))
    return rate * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
