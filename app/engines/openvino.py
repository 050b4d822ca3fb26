"""OpenVINO on the CPU: converted and compiled once, kept in the cache folder for the next start.

A graph for any batch size finds the shapes of its thousand operations anew in every run: one crop takes a third longer,
and twice as long where sizes alternate. So a service compiles one graph for each of a few sizes, at the price of a copy
of the weights each, and other sizes are made of these.

Two cores that share a run wait for each other after each of those thousand operations; two that run by themselves never
do. So under load each core works on items of its own (`narrow`): on two cores crops two by two cost as little as eight
at once on both, and a core that something else wants for a while holds nobody up. All cores share one item's run where
it is the only one.

Inference in bf16 keeps the network's output in float32 (the CPU plug-in never lowers the tail of a graph): decoding
reads sub-pixel places from it. Parts that need more can be kept in float32 as well.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
import openvino

from app.engines.int8 import insert_ranges
from model.inference import Engine
from model.ranges import Ranges

if TYPE_CHECKING:
    from torch import Tensor, nn

logger = logging.getLogger(__name__)

ANY = 0  # in place of a batch size

# The mark that keeps an operation in float32. OpenVINO's Python has no way to make one, so it is read from a graph.
MARKED = b"""<net name="marked" version="11"><layers>
<layer id="0" name="marked" type="Parameter" version="opset1"><data shape="1" element_type="f32"/>
<rt_info><attribute name="precise" version="0"/></rt_info>
<output><port id="0" precision="FP32"><dim>1</dim></port></output></layer>
<layer id="1" name="result" type="Result" version="opset1"><input><port id="0"><dim>1</dim></port></input></layer>
</layers><edges><edge from-layer="0" from-port="0" to-layer="1" to-port="0"/></edges></net>"""


class OpenVINOEngine:
    """One network. Any batch size; an item's result does not depend on its neighbours.

    One thread may call the engine itself, which takes all cores; any number may call `narrow`, of which one more than
    there are cores are let in at once.

    Args:
        make: gives the network (one tensor in, one tensor out), where it is not in the cache yet.
        example: an input (N, ...) with the shape and type of all others, but for N; it may be zeros.
        key: names the converted network in the cache; must change whenever the network does.
        precision: `bf16`, `f32`, or `int8`, which needs ranges.
        threads: CPU threads.
        cache: folder for converted networks; made where missing.
        exact: pattern of the modules' names that compute in float32 though the precision is `bf16`.
        ranges: where the network computes in int8; all else is float32 then.
        sizes: of the batches that a core runs by itself, 1 among them; none: one graph for any size, on all cores.

    Raises:
        PackageError: the ranges do not fit the network.
    """

    def __init__(
        self,
        make: "Callable[[], nn.Module]",
        example: np.ndarray,
        key: str,
        precision: str,
        threads: int,
        cache: Path,
        exact: re.Pattern[str] | None = None,
        ranges: Ranges | None = None,
        sizes: Collection[int] = (),
    ) -> None:
        self.threads = threads
        core = openvino.Core()
        with _locked(cache):
            model = convert_cached(core, make, example, key, cache)
            if precision == "int8":
                assert ranges is not None
                insert_ranges(model, ranges)
            elif precision == "bf16" and exact is not None:
                keep_float32(core, model, exact)
            options = {
                "INFERENCE_PRECISION_HINT": "f32" if precision == "int8" else precision,
                "INFERENCE_NUM_THREADS": threads,
                "ENABLE_CPU_PINNING": False,  # two networks would want the same cores
            }
            if cache.is_dir() and os.access(cache, os.W_OK):
                options["CACHE_DIR"] = str(cache)

            def prepare(size: int, streams: int) -> list[openvino.InferRequest]:
                shaped = model if size == ANY else model.clone()
                if size != ANY:
                    shaped.reshape({0: openvino.PartialShape([size, *example.shape[1:]])})
                compiled = core.compile_model(shaped, "CPU", options | {"NUM_STREAMS": streams})
                return [compiled.create_infer_request() for _ in range(streams + 1)]

            largest_first = sorted(sizes, reverse=True)
            kinds = [(size, threads) for size in largest_first]
            if threads > 1 or not sizes:
                kinds.append((1 if sizes else ANY, 1))
            with ThreadPoolExecutor(len(kinds)) as pool:
                requests = list(pool.map(lambda kind: prepare(*kind), kinds))
        self.sizes = largest_first
        self._lanes: SimpleQueue[dict[int, openvino.InferRequest]] = SimpleQueue()
        for lane in range(threads + 1 if sizes else 0):
            self._lanes.put({size: found[lane] for size, found in zip(largest_first, requests, strict=False)})
        self._wide, self._wide_lock = requests[-1][0], Lock()
        self._pool = ThreadPoolExecutor(threads, "lane") if sizes and threads > 1 else None
        # OpenVINO's Python looks numpy up in its first run; two threads that do so at once wait for each other for ever
        _infer(self._wide, example[:1])

    def __call__(self, crops: np.ndarray) -> np.ndarray:
        """Inputs (N, ...) -> the network's output (N, ...) float32."""
        if not self.sizes or (len(crops) == 1 and self._pool is not None):
            with self._wide_lock:  # a caller from before a swap of packages may be in here
                return _infer(self._wide, crops)
        if self._pool is None:
            return self.narrow(crops)
        share = min(self.sizes[0], -(-len(crops) // self.threads))
        parts = [crops[i : i + share] for i in range(0, len(crops), share)]
        return np.concatenate(list(self._pool.map(self.narrow, parts)))

    def narrow(self, crops: np.ndarray) -> np.ndarray:
        """As calling the engine, on one core, beside other threads that do so."""
        lane = self._lanes.get()
        try:
            outputs: list[np.ndarray] = []
            begin = 0
            for size, request in lane.items():
                while begin + size <= len(crops):
                    outputs.append(_infer(request, crops[begin : begin + size]))
                    begin += size
        finally:
            self._lanes.put(lane)
        return outputs[0] if len(outputs) == 1 else np.concatenate(outputs)


def _infer(request: openvino.InferRequest, items: np.ndarray) -> np.ndarray:
    """The output, in memory of its own: the request's is written again by its next run."""
    output: np.ndarray = request.infer({0: items}, share_inputs=True)[0]
    return output


def compile_float32(path: Path) -> Engine:
    """A graph that was saved, in float32; called as `OpenVINOEngine` is."""
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    request = compiled.create_infer_request()
    return lambda crops: request.infer({0: crops})[0]


def keep_float32(core: openvino.Core, model: openvino.Model, exact: re.Pattern[str]) -> None:
    """Mark the operations of the modules named by `exact`; an operation's name holds its module's."""
    [parameter] = core.read_model(MARKED, b"").get_parameters()
    [(name, mark)] = parameter.get_rt_info().items()
    for operation in model.get_ops():
        if exact.search(operation.get_friendly_name()):
            operation.set_rt_info(mark, name)


def convert_cached(
    core: openvino.Core, make: "Callable[[], nn.Module]", example: np.ndarray, key: str, cache: Path
) -> openvino.Model:
    """`convert`, or its result of an earlier start from the cache folder."""
    versions = f"{key} {openvino.__version__} {example.shape[1:]} {example.dtype}"
    path = cache / f"{hashlib.sha256(versions.encode()).hexdigest()[:32]}.xml"
    if path.is_file():
        try:
            return core.read_model(path)
        except RuntimeError as error:
            logger.warning("cached network %s cannot be read, converting again: %s", path, error)
    logger.info("converting the network for OpenVINO; the next start takes it from %s", cache)
    network = make()  # the graph's constants are the network's own memory, so it has to live until they are written
    model = convert(network, example)
    try:
        _save(model, path)
        return core.read_model(path)  # as later starts do: what is compiled of it has the same name in the cache then
    except (OSError, RuntimeError) as error:
        logger.warning("the converted network is not kept, every start converts it again: %s", error)
    with tempfile.TemporaryDirectory() as folder:
        _save(model, Path(folder) / path.name)
        return core.read_model(Path(folder) / path.name)  # mapped, so the file may go


def convert(network: "nn.Module", example: "np.ndarray | Tensor") -> openvino.Model:
    """The network as an OpenVINO graph with any batch size and the example's other sizes. It must outlive the graph."""
    import torch

    example = torch.as_tensor(example)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # tracing warns of its own deprecation and of Python values
        traced = torch.jit.trace(network, example, check_trace=False)  # type: ignore[no-untyped-call]
        model = openvino.convert_model(traced, example_input=example)
    model.reshape({0: openvino.PartialShape([-1, *example.shape[1:]])})
    return model


@contextlib.contextmanager
def _locked(cache: Path) -> Iterator[None]:
    """The cache for this process alone: OpenVINO writes compiled networks in place, under the eyes of whoever reads
    them. A cache that cannot be written is read without."""
    try:
        cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = (cache / ".lock").open("a")
    except OSError:
        yield
        return
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _save(model: openvino.Model, path: Path) -> None:
    """Write `path` and its weights beside it so that no reader ever sees a half-written pair."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        beside = Path(folder) / path.name
        openvino.save_model(model, beside, compress_to_fp16=False)
        beside.with_suffix(".bin").replace(path.with_suffix(".bin"))
        beside.replace(path)
