"""PyTorch: half precision, channels-last and recorded on a GPU; on the CPU the float32 reference of other engines.

A GPU computes a small batch faster than Python can launch its hundreds of kernels one by one. So the kernels of a batch
size are recorded once, as a CUDA graph, and each run replays them all with a single launch. Recorded sizes are powers
of two; a batch is padded to the next one. The recording itself has not run on a GPU yet: `benchmarks/gpu_check.py` does
that, and checks the numbers.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from model.device_crop import upload
from model.folding import fold

WARMUP = 3  # runs before recording: libraries choose kernels and take memory in the first ones

HALF = {"f16": torch.float16, "bf16": torch.bfloat16}

Replay = Callable[[], object]
Record = Callable[[Callable[[], Tensor]], tuple[Replay, Tensor]]


class TorchEngine:
    """One network, for one thread. The network that it is given stays as it is: the engine has a copy.

    Args:
        network: one tensor in, one tensor out.
        device: `cuda` or `cpu`.
        precision: `f16`, `bf16` or `f32`. f16 is as fast as bf16 and eight times finer; numbers end at 65,504.
        record: see there; by default `record_graph` on CUDA, else None.

    Attributes:
        record: turns a run into (a replay of it, the tensor where each replay leaves its outputs); None where every run
            launches its kernels anew.
    """

    def __init__(self, network: nn.Module, device: str, precision: str, record: Record | None = None) -> None:
        self.device = torch.device(device)
        self.half = HALF.get(precision)
        self.network = fold(network).to(self.device).to(memory_format=torch.channels_last)
        if self.half is not None:
            _cast(self.network, self.half)
        self.record = record
        if self.device.type == "cuda":
            self.record = record or record_graph
            torch.backends.cudnn.allow_tf32 = False  # float32 is what it says, in the head too
            torch.backends.cudnn.benchmark = True  # shapes repeat, so trying kernels pays
        self._recorded: dict[tuple[int, ...], _Recording] = {}

    def __call__(self, crops: np.ndarray | Tensor) -> Tensor:
        """Inputs (N, ...), an array or a tensor on `device` -> the network's output (N, ...) there."""
        with torch.inference_mode():
            inputs = crops if isinstance(crops, Tensor) else upload(crops, self.device)
            if self.record is None:
                return self._run(inputs)
            shape = (1 << (len(inputs) - 1).bit_length(), *inputs.shape[1:])
            if shape not in self._recorded:
                self._recorded[shape] = _Recording(self._run, inputs.new_zeros(shape), self.record)
            return self._recorded[shape](inputs)

    def _run(self, inputs: Tensor) -> Tensor:
        # without the cache: weights are cast beforehand, and a recording must not hold what the cache drops
        with torch.autocast(self.device.type, self.half, enabled=self.half is not None, cache_enabled=False):
            outputs: Tensor = self.network(inputs)
        return outputs


class _Recording:
    """One batch size of a network: inputs are copied to where the recorded run reads them, outputs from where it leaves
    them. What fills up the batch is left from earlier runs; items do not depend on each other."""

    def __init__(self, run: Callable[[Tensor], Tensor], inputs: Tensor, record: Record) -> None:
        self.inputs = inputs
        self.replay, self.outputs = record(lambda: run(inputs))

    def __call__(self, inputs: Tensor) -> Tensor:
        count = len(inputs)
        self.inputs[:count].copy_(inputs, non_blocking=True)
        self.replay()
        return self.outputs[:count].clone()


def record_graph(run: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
    """Record a run as a CUDA graph; see "CUDA semantics" in PyTorch's documentation."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARMUP):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads use the GPU meanwhile
        outputs = run()
    return graph.replay, outputs


def _cast(network: nn.Module, half: torch.dtype) -> None:
    """Weights of the layers that compute in half precision; `Float32Head` keeps its own."""
    for layer in network.children():
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            layer.to(half)
        elif not isinstance(layer, Float32Head):
            _cast(layer, half)


class Float32Head(nn.Module):
    """A network's last layer in float32 while the rest runs in half precision: decoding needs its fine steps."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Any) -> Any:
        """The head's outputs for its input, a tensor or a list of tensors of any floating type."""
        parts = features if isinstance(features, list) else [features]
        with torch.autocast(parts[0].device.type, enabled=False):
            exact = [part.float() for part in parts]
            return self.head(exact if isinstance(features, list) else exact[0])
