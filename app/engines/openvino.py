"""OpenVINO on the CPU: converted once from the torch module, kept in the cache folder for the next start.

Inference in bf16 keeps the graph's tail, which is the head's output, in float32 (the CPU plug-in never lowers a
network's outputs): decoding reads sub-pixel places from it.
"""

import hashlib
import logging
import tempfile
import warnings
from pathlib import Path

import numpy as np
import openvino
import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)


def has_bf16() -> bool:
    """Whether this CPU multiplies bf16 in hardware."""
    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class OpenVINOEngine:
    """One network, for one thread. Any batch size; an item's result does not depend on its neighbours.

    Args:
        network: one tensor in, one tensor out.
        example: an input (N, ...) with the shape and type of all others, but for N; it may be zeros.
        key: names the converted network in the cache; must change whenever the network does.
        precision: `bf16` or `f32`.
        threads: CPU threads.
        cache: folder for converted networks; made where missing.
    """

    def __init__(
        self, network: nn.Module, example: Tensor, key: str, precision: str, threads: int, cache: Path
    ) -> None:
        core = openvino.Core()
        model = _convert_cached(core, network, example, key, cache)
        options = {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
        }
        compiled = core.compile_model(model, "CPU", options)
        self._request = compiled.create_infer_request()

    def __call__(self, crops: np.ndarray) -> Tensor:
        """Inputs (N, ...) -> the network's output (N, ...) float32, on the CPU."""
        return torch.from_numpy(self._request.infer({0: crops}, share_inputs=True)[0])


def _convert_cached(core: openvino.Core, network: nn.Module, example: Tensor, key: str, cache: Path) -> openvino.Model:
    versions = f"{key} {torch.__version__} {openvino.__version__} {tuple(example.shape[1:])} {example.dtype}"
    path = cache / f"{hashlib.sha256(versions.encode()).hexdigest()[:32]}.xml"
    if path.is_file():
        try:
            return core.read_model(path)
        except RuntimeError as error:
            logger.warning("cached network %s cannot be read, converting again: %s", path, error)
    logger.info("converting the network for OpenVINO; the next start takes it from %s", cache)
    model = convert(network, example)
    try:
        _save(model, path)
    except (OSError, RuntimeError) as error:
        logger.warning("the converted network is not kept, every start converts it again: %s", error)
    return model


def convert(network: nn.Module, example: Tensor) -> openvino.Model:
    """The network as an OpenVINO graph with any batch size and the example's other sizes."""
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # tracing warns of its own deprecation and of Python values
        traced = torch.jit.trace(network, example, check_trace=False)  # type: ignore[no-untyped-call]
        model = openvino.convert_model(traced, example_input=example)
    model.reshape({0: openvino.PartialShape([-1, *example.shape[1:]])})
    return model


def _save(model: openvino.Model, path: Path) -> None:
    """Write `path` and its weights beside it so that no reader ever sees a half-written pair."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        beside = Path(folder) / path.name
        openvino.save_model(model, beside, compress_to_fp16=False)
        beside.with_suffix(".bin").replace(path.with_suffix(".bin"))
        beside.replace(path)
