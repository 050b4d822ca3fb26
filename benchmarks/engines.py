"""How fast the networks run by themselves: milliseconds per crop by engine, arithmetic and batch size.

    python benchmarks/engines.py --quick
    python benchmarks/engines.py --size 256x192 --batches 1 8 16 --json engines.json

SDHRNet-W32, SDHRNet-W16 and HRNet-W32 side by side, with random weights (their values cost no time), through the
engines that serve. Variants take turns, round after round, so that a noisy machine is unfair to all alike; the table
has each one's best run, which is what the machine can do when nobody disturbs it.

Beside each stands its share of the roofline: the time that its multiply-accumulates would take at the rate at which
this machine multiplies large matrices in the same arithmetic, measured in the same rounds. What is below 100 % is time
spent on other things: memory, depthwise convolutions, gates, launching. `--profile` shows which.
"""

import argparse
import json
import logging
import os
import platform
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn

from app.batching import batch_sizes
from app.engines import Runtime, create_engine
from app.engines.choice import EXACT, NARROW
from app.engines.openvino import convert, keep_float32
from model.cpu import has_bf16
from model.folding import fold_gates
from model.inference import Engine
from model.networks import build
from model.networks.complexity import count_macs

NETWORKS = ("sdhrnet_w32", "hrnet_w32", "sdhrnet_w16")
SIDE = 2048  # of the matrices whose product gives the roofline


class Pixels(nn.Module):
    """`model.networks.pixels.PixelNetwork` without a package."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        heatmaps: torch.Tensor = self.network((crops.permute(0, 3, 1, 2).float() - 118) / 58)
        return heatmaps


@dataclass
class Variant:
    """One row: what runs, on how many crops at once, and the seconds of its runs."""

    network: str
    engine: str
    precision: str
    batch: int
    macs: int
    run: Callable[[], object]
    seconds: list[float] = field(default_factory=list)

    @property
    def ms(self) -> float:
        """Milliseconds per crop, best run."""
        return min(self.seconds) / self.batch * 1e3


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="192x144", help="crop HEIGHTxWIDTH (default 192x144)")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--profile", action="store_true", help="also where OpenVINO's time goes, for the largest batch")
    parser.add_argument("--quick", action="store_true", help="5 rounds, and no float32 PyTorch: under 5 minutes")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    height, _, width = options.size.partition("x")
    size = (int(height), int(width))
    rounds = 5 if options.quick else options.rounds
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(options.threads)
    console = Console()
    with tempfile.TemporaryDirectory() as cache:
        runtimes = choose_runtimes(options.threads, options.quick)
        variants: list[Variant] = []
        jobs = [(name, runtime) for name in options.networks for runtime in runtimes]
        progress = Console(stderr=True)
        for name, runtime in track(jobs, "building engines", console=progress):
            variants += prepare(name, runtime, size, options.batches, Path(cache))
        peaks = {precision: Peak(precision, options.threads) for precision in sorted({v.precision for v in variants})}
        for _ in track(range(rounds), "taking turns", console=progress):
            for peak in peaks.values():
                peak.step()
            for variant in variants:
                began = time.perf_counter()
                variant.run()
                variant.seconds.append(time.perf_counter() - began)
        print_table(console, variants, peaks, options)
        if options.profile:
            for name in options.networks:
                print_profile(console, name, size, max(options.batches), options.threads)
    if options.json:
        rows = [
            {
                "network": v.network, "engine": v.engine, "precision": v.precision, "batch": v.batch,
                "ms_per_crop": round(v.ms, 3), "gmacs": round(v.macs / 1e9, 3),
                "share_of_roofline": round(v.macs / peaks[v.precision].macs_per_second / v.ms * 1e3, 3),
            }
            for v in variants
        ]  # fmt: skip
        peak = {precision: round(p.macs_per_second / 1e9, 1) for precision, p in peaks.items()}
        content = {"size": size, "threads": options.threads, "gmacs_per_s": peak, "machine": machine(), "rows": rows}
        beside = options.json.with_suffix(".partial")
        beside.write_text(json.dumps(content, indent=2) + "\n")
        beside.replace(options.json)


def choose_runtimes(threads: int, quick: bool) -> list[Runtime]:
    """Every engine and arithmetic that this machine has, the one that serves first."""
    sizes = batch_sizes(NARROW)
    runtimes = [Runtime("openvino", "cpu", "f32", threads, sizes)]
    if has_bf16():
        runtimes.insert(0, Runtime("openvino", "cpu", "bf16", threads, sizes))
    if not quick:
        runtimes.append(Runtime("torch", "cpu", "f32", threads))
    if torch.cuda.is_available():
        runtimes = [Runtime("torch", "cuda", precision, threads) for precision in ("f16", "f32")] + runtimes
    return runtimes


def prepare(name: str, runtime: Runtime, size: tuple[int, int], batches: list[int], cache: Path) -> list[Variant]:
    """One network on one engine, warm, for every batch size."""
    torch.manual_seed(0)
    network = build(name, 17).eval()
    macs = count_macs(network, size)
    example = np.zeros((2, *size, 3), np.uint8)
    engine = create_engine(lambda: Pixels(network), example, name, runtime, cache, EXACT)
    random = np.random.default_rng(0)
    variants = []
    for batch in batches:
        crops = random.integers(0, 256, (batch, *size, 3), np.uint8)
        run = _runner(engine, crops)
        for _ in range(2):
            run()
        variants.append(Variant(name, runtime.engine, runtime.precision, batch, macs, run))
    return variants


def _runner(engine: Engine, crops: np.ndarray) -> Callable[[], object]:
    def run() -> None:
        if not isinstance(found := engine(crops), np.ndarray):
            found.cpu()  # waits for a GPU

    return run


class Peak:
    """Multiply-accumulates per second of large matrix products, on the engine's own library."""

    def __init__(self, precision: str, threads: int) -> None:
        self.seconds: list[float] = []
        if precision == "f16":
            matrix = torch.randn(4 * SIDE, 4 * SIDE, device="cuda", dtype=torch.float16)
            self.macs = (4 * SIDE) ** 3
            self._run: Callable[[], object] = lambda: ((matrix @ matrix), torch.cuda.synchronize())
        else:
            import openvino  # here, once app.engines has kept it off the network
            from openvino import opset13

            a = opset13.parameter([SIDE, SIDE], np.float32)
            product = opset13.matmul(a, opset13.constant(np.ones((SIDE, SIDE), np.float32)), False, False)
            options = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads}
            compiled = openvino.Core().compile_model(openvino.Model([product], [a]), "CPU", options)
            request, values = compiled.create_infer_request(), np.ones((SIDE, SIDE), np.float32)
            self.macs = SIDE**3
            self._run = lambda: request.infer({0: values}, share_inputs=True)
        self._run()

    def step(self) -> None:
        """Time one product."""
        began = time.perf_counter()
        self._run()
        self.seconds.append(time.perf_counter() - began)

    @property
    def macs_per_second(self) -> float:
        """Of the best run."""
        return self.macs / min(self.seconds)


def print_table(console: Console, variants: list[Variant], peaks: dict[str, Peak], options: argparse.Namespace) -> None:
    """A row per network, engine and arithmetic; columns by batch size."""
    title = f"ms per crop of {options.size}, {options.threads} threads, {machine()}"
    table = Table("network", "engine", "arithmetic", "GMACs", title=title)
    for batch in options.batches:
        table.add_column(f"batch {batch}", justify="right")
        table.add_column("of roofline", justify="right")
    rows: dict[tuple[str, str, str], list[Variant]] = defaultdict(list)
    for variant in variants:
        rows[variant.network, variant.engine, variant.precision].append(variant)
    for (network, engine, precision), found in rows.items():
        cells = []
        for variant in found:
            share = variant.macs / peaks[precision].macs_per_second / variant.ms * 1e3
            cells += [f"{variant.ms:.1f}", f"{share:.0%}"]
        table.add_row(network, engine, precision, f"{found[0].macs / 1e9:.2f}", *cells)
    console.print(table)
    for precision, peak in peaks.items():
        console.print(f"matrix peak in {precision}: {peak.macs_per_second / 1e9:.0f} GMAC/s ({SIDE} x {SIDE})")
    for batch in options.batches:
        own, other = (
            [v for v in variants if v.network == name and v.batch == batch] for name in ("sdhrnet_w32", "hrnet_w32")
        )
        if own and other:
            console.print(
                f"batch {batch}, {own[0].engine} {own[0].precision}: SDHRNet-W32 takes "
                f"{own[0].ms / other[0].ms:.2f} of HRNet-W32's time, at "
                f"{own[0].macs / other[0].macs:.2f} of its multiply-accumulates"
            )


def print_profile(console: Console, name: str, size: tuple[int, int], batch: int, threads: int) -> None:
    """Where OpenVINO's time goes, by kind of operation; its own counters, which slow it down a little."""
    import openvino

    torch.manual_seed(0)
    network = fold_gates(Pixels(build(name, 17).eval()))
    precision = "bf16" if has_bf16() else "f32"
    core, model = openvino.Core(), convert(network, torch.zeros(2, *size, 3, dtype=torch.uint8))
    if precision == "bf16":
        keep_float32(core, model, EXACT)
    options = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads, "PERF_COUNT": True}
    request = core.compile_model(model, "CPU", options).create_infer_request()
    for _ in range(3):
        request.infer({0: np.zeros((batch, *size, 3), np.uint8)})
    kinds: dict[str, list[float]] = defaultdict(list)
    for operation in request.profiling_info:
        kinds[f"{operation.node_type} {operation.exec_type}"].append(operation.real_time.total_seconds())
    total = sum(map(sum, kinds.values()))
    table = Table(
        "operation", "count", "ms", "share", title=f"{name}, {precision}, batch {batch}: {total * 1e3:.0f} ms"
    )
    for kind, seconds in sorted(kinds.items(), key=lambda entry: -sum(entry[1]))[:12]:
        table.add_row(kind, str(len(seconds)), f"{sum(seconds) * 1e3:.1f}", f"{sum(seconds) / total:.0%}")
    console.print(table)


def machine() -> str:
    """The processor's name, as far as it says."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
