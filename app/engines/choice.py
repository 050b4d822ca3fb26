"""What runs the networks: chosen once at the start, from the settings and the machine."""

import hashlib
import logging
import multiprocessing
import os
import re
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

import model
from app.engines.openvino import OpenVINOEngine, has_bf16
from app.engines.torch import Float32Head, TorchEngine
from app.settings import Settings, SettingsError
from model.errors import PackageError
from model.inference import Engine, PixelNetwork
from model.package import Package, load_package

logger = logging.getLogger(__name__)

# The last stage's high-resolution branch, its exchanges and what follows: in bf16 their rounding moves joints most. In
# float32 they cost next to nothing. What is left comes from the layers before; POSE_PRECISION=f32 removes it.
EXACT = re.compile(r"network\.(head|pyramid|stages\.2\.\d\.(branches\.0|exchange))\b")


@dataclass(frozen=True)
class Runtime:
    """An engine, where it runs, and its arithmetic: `openvino` or `torch`, `cpu` or `cuda`, `bf16` or `f32`."""

    engine: str
    device: str
    precision: str
    threads: int


def choose_runtime(settings: Settings) -> Runtime:
    """What the settings ask for; `auto` takes the fastest this machine has.

    Raises:
        SettingsError: what is asked for is not there, or does not go together.
    """
    cuda = torch.cuda.is_available()
    if settings.device == "cuda" and not cuda:
        raise SettingsError("POSE_DEVICE=cuda, but torch finds no CUDA device here; use auto or cpu")
    device = ("cuda" if cuda else "cpu") if settings.device == "auto" else settings.device
    if settings.engine == "openvino" and settings.device == "auto":
        device = "cpu"
    if settings.engine == "openvino" and device == "cuda":
        raise SettingsError("POSE_ENGINE=openvino runs on the CPU only; use POSE_DEVICE=cpu or POSE_ENGINE=torch")
    engine = ("torch" if device == "cuda" else "openvino") if settings.engine == "auto" else settings.engine
    precision = settings.precision
    if precision == "auto":
        fast = torch.cuda.is_bf16_supported() if device == "cuda" else engine == "openvino" and has_bf16()
        precision = "bf16" if fast else "f32"
    elif precision == "bf16" and engine == "openvino" and not has_bf16():
        raise SettingsError("POSE_PRECISION=bf16, but this CPU has no bf16 arithmetic; use auto or f32")
    runtime = Runtime(engine, device, precision, settings.threads or len(os.sched_getaffinity(0)))
    logger.info(
        "engine %s on %s in %s, %d CPU threads", runtime.engine, runtime.device, runtime.precision, runtime.threads
    )
    return runtime


def create_engine(
    network: nn.Module, example: Tensor, key: str, runtime: Runtime, cache: Path, exact: re.Pattern[str] | None = None
) -> OpenVINOEngine | TorchEngine:
    """The network on its runtime: array (N, ...) in, tensor (N, ...) out; for one thread.

    Args:
        example: an input with the shape and type of all others, but for N.
        key: names the weights, for the cache of converted networks.
        exact: modules that OpenVINO keeps in float32.
    """
    if runtime.engine == "openvino":
        key = f"{key} {_hash_code()}"
        return OpenVINOEngine(network, example, key, runtime.precision, runtime.threads, cache, exact)
    return TorchEngine(network, runtime.device, runtime.precision)


def create_pose_engine(package: Package, runtime: Runtime, cache: Path) -> Engine:
    """The engine of a pose package; with the torch engine the package's network becomes the engine's own."""
    if runtime.engine == "torch" and runtime.precision == "bf16":
        package.network.head = Float32Head(package.network.get_submodule("head"))
    example = torch.zeros(2, *package.card.input_size, 3, dtype=torch.uint8)
    network = PixelNetwork(package.network, package.card)
    return create_engine(network, example, package.card.sha256, runtime, cache, EXACT)


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
    create_pose_engine(load_package(name_or_path), runtime, cache)


def build_engine(package: Package, engine: Literal["auto", "openvino", "torch"]) -> Engine:
    """The named engine for a package on this machine, with every other setting at its default: for validation.

    Raises:
        SettingsError: see `choose_runtime`.
    """
    settings = Settings(engine=engine)
    return create_pose_engine(package, choose_runtime(settings), settings.cache_folder)


def _hash_code() -> str:
    """Changes with the code of the networks, which a converted network is made from as much as from its weights."""
    folder = Path(model.__file__).parent
    files = sorted([*folder.glob("networks/*.py"), folder / "inference.py", folder / "person_detector.py"])
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
