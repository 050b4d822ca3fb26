"""What runs the networks: chosen once at the start, from the settings and the machine."""

import hashlib
import logging
import multiprocessing
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import openvino

import model
from app.batching import batch_sizes
from app.engines.int8 import find_ranges
from app.engines.openvino import OpenVINOEngine, convert_cached
from app.settings import Settings, SettingsError
from model.cpu import has_bf16
from model.errors import PackageError
from model.inference import Engine
from model.package import Package, open_package
from model.ranges import Ranges

if TYPE_CHECKING:
    from torch import nn

logger = logging.getLogger(__name__)

# The last stage's high-resolution branch, its exchanges and what follows: in bf16 their rounding moves joints most. In
# float32 they cost next to nothing. What is left comes from the layers before; POSE_PRECISION=f32 removes it.
EXACT = re.compile(r"network\.(head|pyramid|stages\.2\.\d\.(branches\.0|exchange))\b")

# Most items of a run on one core. Measured per item on two cores, pose network: 16.8 ms alone, 15.3 in twos, 15.1 in
# fours, 14.5 in eights; every size costs a copy of the weights.
NARROW = 2

DRIVERS = ("/proc/driver/nvidia", "/dev/nvidiactl", "/dev/dxg")  # the last one is Windows' in its Linux


@dataclass(frozen=True)
class Runtime:
    """An engine (`openvino` or `torch`), where it runs (`cpu` or `cuda`), its arithmetic (`f16`, `bf16`, `f32` or
    `int8`), and the sizes of the batches that a core runs by itself on OpenVINO (none: all cores share every run).

    int8 is the pose network's; a detector has no ranges and runs in bf16 then, or in f32 where the CPU has no bf16.
    """

    engine: str
    device: str
    precision: str
    threads: int
    sizes: tuple[int, ...] = ()

    @property
    def lanes(self) -> int:
        """Runs that can go on side by side: one more than there are cores, so that none is idle while Python is busy
        with what came of a run."""
        return self.threads + 1 if self.sizes else 1


def has_cuda() -> bool:
    """Whether there is a GPU that PyTorch can use. Where there is no NVIDIA driver, PyTorch is not even loaded."""
    if not any(Path(place).exists() for place in DRIVERS) or find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


def choose_runtime(settings: Settings) -> Runtime:
    """What the settings ask for; `auto` takes the fastest this machine has.

    Raises:
        SettingsError: what is asked for is not there, or does not go together.
    """
    cuda = has_cuda()
    if settings.device == "cuda" and not cuda:
        raise SettingsError("POSE_DEVICE=cuda, but torch finds no CUDA device here; use auto or cpu")
    if settings.precision == "int8" and (settings.device == "cuda" or settings.engine == "torch"):
        raise SettingsError(
            "POSE_PRECISION=int8 runs on OpenVINO on the CPU only; leave POSE_DEVICE and POSE_ENGINE at auto, or use "
            "another precision"
        )
    device = ("cuda" if cuda else "cpu") if settings.device == "auto" else settings.device
    if settings.device == "auto" and (settings.engine == "openvino" or settings.precision == "int8"):
        device = "cpu"
    if settings.engine == "openvino" and device == "cuda":
        raise SettingsError("POSE_ENGINE=openvino runs on the CPU only; use POSE_DEVICE=cpu or POSE_ENGINE=torch")
    engine = ("torch" if device == "cuda" else "openvino") if settings.engine == "auto" else settings.engine
    precision = settings.precision
    if precision == "auto":
        precision = "bf16" if engine == "openvino" and has_bf16() else "f32"
        if device == "cuda":
            precision = "f16"  # as fast as bf16 and eight times finer: bf16 moves joints further than the gate allows
    elif precision == "f16" and device != "cuda":
        raise SettingsError("POSE_PRECISION=f16 is for a GPU, and the networks run on the CPU here; use auto or f32")
    elif precision == "bf16" and engine == "openvino" and not has_bf16():
        raise SettingsError("POSE_PRECISION=bf16, but this CPU has no bf16 arithmetic; use auto or f32")
    sizes = batch_sizes(min(settings.max_batch, NARROW)) if engine == "openvino" else ()
    runtime = Runtime(engine, device, precision, settings.threads, sizes)
    logger.info(
        "engine %s on %s in %s, %d CPU threads", runtime.engine, runtime.device, runtime.precision, runtime.threads
    )
    return runtime


def create_engine(
    make: "Callable[[], nn.Module]",
    example: np.ndarray,
    key: str,
    runtime: Runtime,
    cache: Path,
    exact: re.Pattern[str] | None = None,
    ranges: Ranges | None = None,
) -> Engine:
    """The network on its runtime: array (N, ...) in, array (OpenVINO) or tensor (PyTorch) (N, ...) out; for one thread,
    but see `on_one_core`.

    Args:
        make: gives the network; not called where OpenVINO has it converted in the cache.
        example: an input with the shape and type of all others, but for N.
        key: names the weights, for the cache of converted networks.
        exact: modules that OpenVINO keeps in float32.
        ranges: what int8 needs; a network without them runs in bf16 or f32 in its stead.
    """
    if runtime.engine == "openvino":
        precision = runtime.precision
        if precision == "int8" and ranges is None:
            precision = "bf16" if has_bf16() else "f32"
        key = f"{key} {_hash_code()}"
        return OpenVINOEngine(
            _folded(make), example, key, precision, runtime.threads, cache, exact, ranges, runtime.sizes
        )
    from app.engines.torch import TorchEngine

    return TorchEngine(make(), runtime.device, runtime.precision)


def _folded(make: "Callable[[], nn.Module]") -> "Callable[[], nn.Module]":
    def folded() -> "nn.Module":
        network = make()  # says what is missing where PyTorch is not installed
        from model.folding import fold_gates

        return fold_gates(network)

    return folded


def on_one_core(engine: Engine) -> Engine:
    """The way an engine is called from one of several threads with a core each; itself where it has no such way."""
    narrow: Engine = getattr(engine, "narrow", engine)
    return narrow


def create_pose_engine(package: Package, runtime: Runtime, cache: Path) -> Engine:
    """The engine of a pose package; with the torch engine the package's network becomes the engine's own.

    Raises:
        PackageError: int8 is asked for, and the package has no ranges, or some that do not fit.
    """
    if runtime.precision == "int8" and package.ranges is None:
        card = package.card
        raise PackageError(
            f"POSE_PRECISION=int8, but package {card.name} {card.version} has no int8 ranges: make them with `pose "
            "quantise PACKAGE`, or use auto"
        )

    def make() -> "nn.Module":
        network = _pixel_network(package)
        if runtime.engine == "torch" and runtime.precision != "f32":
            from app.engines.torch import Float32Head

            package.network.head = Float32Head(package.network.get_submodule("head"))
        return network

    return create_engine(make, example_crops(package), package.card.sha256, runtime, cache, EXACT, package.ranges)


def _pixel_network(package: Package) -> "nn.Module":
    network = package.network
    from model.networks.pixels import PixelNetwork

    return PixelNetwork(network, package.card)


def example_crops(package: Package) -> np.ndarray:
    """(2, H, W, 3) uint8 zeros of the package's size, to trace its network with."""
    return np.zeros((2, *package.card.input_size, 3), np.uint8)


def convert_pose(package: Package, cache: Path) -> openvino.Model:
    """The package's network as an OpenVINO graph in float32: (N, H, W, 3) uint8 crops -> heatmaps."""
    make, key = _folded(lambda: _pixel_network(package)), f"{package.card.sha256} {_hash_code()}"
    return convert_cached(openvino.Core(), make, example_crops(package), key, cache)


def find_pose_ranges(package: Package, crops: np.ndarray, cache: Path) -> Ranges:
    """What the package needs for int8; see `app.engines.int8.find_ranges`."""
    return find_ranges(convert_pose(package, cache), crops, EXACT, package.card.sha256)


def convert_apart(name_or_path: str, runtime: Runtime, cache: Path) -> None:
    """Convert a pose package for its engine in a process of its own; `create_pose_engine` finds it in the cache then.

    Converting for OpenVINO holds Python's lock for seconds at a time, in which no request would be answered, and a
    network that is too large for the machine takes that process down instead of this one.

    Raises:
        PackageError: that process failed.
    """
    if runtime.engine != "openvino":
        return
    process = multiprocessing.get_context("spawn").Process(
        target=_convert, args=(name_or_path, runtime, cache), name="convert", daemon=True
    )
    process.start()
    process.join()
    if process.exitcode:
        raise PackageError(
            f"{name_or_path} cannot be converted for {runtime.engine} on this machine: the process that tried ended "
            f"with status {process.exitcode} (negative: the signal that ended it; -9 is most often too little memory)"
        )


def _convert(name_or_path: str, runtime: Runtime, cache: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ^C in a terminal reaches this process too
    create_pose_engine(open_package(name_or_path), runtime, cache)


def build_engine(
    package: Package,
    engine: Literal["auto", "openvino", "torch"],
    precision: Literal["auto", "f16", "bf16", "f32", "int8"] = "auto",
) -> Engine:
    """The named engine for a package on this machine, with every other setting at its default: for validation.

    Raises:
        SettingsError: see `choose_runtime`.
        PackageError: see `create_pose_engine`.
    """
    settings = Settings(engine=engine, precision=precision)
    return create_pose_engine(package, choose_runtime(settings), settings.cache_folder)


def _hash_code() -> str:
    """Changes with the code of the networks, which a converted network is made from as much as from its weights."""
    folder = Path(model.__file__).parent
    return hashlib.sha256(b"".join(file.read_bytes() for file in sorted(folder.rglob("*.py")))).hexdigest()
