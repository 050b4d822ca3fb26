"""How fast training steps are: pictures per second by network, arithmetic, memory layout and compilation.

    python benchmarks/train_speed.py --quick
    python benchmarks/train_speed.py --size 256x192 --batch 16 --compile --json speed.json

A step is what `pose train` does (forward, loss, backward, clipping, AdamW, average) on random crops that are in memory
already. The loader is timed alone, on augmented crops of a picture that ultralytics carries. Variants take turns, round
after round, so that a noisy machine is unfair to all alike; the table has medians, and ratios to its first row.
"""

import argparse
import itertools
import json
import platform
import statistics
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from model.codec import HeatmapCodec
from model.skeletons import COCO
from training.config import Augmentation, DataSet, Phase, TrainConfig
from training.distributed import Workers
from training.loader import Crops, loader
from training.people import Person, keep_crops
from training.publishing import parse_size
from training.trainer import Trainer

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ALONE = Workers(device=DEVICE)
NOWHERE = DataSet(name="none", annotations="none", images="none", licence="none")


class Variant:
    """One way to take a step, ready to be timed."""

    def __init__(self, network: str, precision: str, channels_last: bool, compiled: bool, phase: Phase) -> None:
        self.network, self.precision, self.channels_last, self.compiled = network, precision, channels_last, compiled
        self.seconds: list[float] = []
        config = TrainConfig.model_validate(
            {
                "name": "speed",
                "network": network,
                "precision": precision,
                "data": [NOWHERE],
                "validation": NOWHERE,
                "phases": [phase],
            }
        )
        self.phase = phase
        self.trainer = Trainer(config, Path(tempfile.gettempdir()), ALONE)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self.trainer.network.to(memory_format=layout)
        self.trainer.parallel = torch.compile(self.trainer.network) if compiled else self.trainer.network  # type: ignore[assignment]
        self.codec = HeatmapCodec(phase.input_size, config.sigma_at(phase.input_size), config.activation)
        random = torch.Generator().manual_seed(0)
        height, width = phase.input_size
        self.batch = (
            torch.randint(0, 256, (phase.batch, height, width, 3), dtype=torch.uint8, generator=random),
            torch.rand(phase.batch, len(COCO), 2, generator=random) * torch.tensor([width - 1.0, height - 1.0]),
            torch.ones(phase.batch, len(COCO)),
            list(range(phase.batch)),
        )

    def step(self) -> float:
        """Seconds of one step."""
        began = time.perf_counter()
        self.trainer.train_batch(self.batch, self.phase, self.codec, [])
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    @property
    def speed(self) -> float:
        """Median pictures per second."""
        return self.phase.batch / statistics.median(self.seconds)


def loader_speed(size: tuple[int, int], batch: int, seconds: float) -> float:
    """Augmented crops per second that one process makes, with nothing else to do."""
    spec = find_spec("ultralytics")
    assert spec is not None
    assert spec.origin is not None
    box, joints = (
        np.array([50.0, 400.0, 245.0, 900.0]),
        np.random.default_rng(0).uniform((60, 420), (230, 880), (17, 2)),
    )
    picture = Path(spec.origin).parent / "assets" / "bus.jpg"
    people = [Person(0, picture, box, joints, np.ones(17), number, 0, 1.0) for number in range(64)]
    crops = Crops(people, keep_crops(people, size), size, COCO, Augmentation(), seed=0)
    batches = iter(loader(crops, np.ones(len(people)), batch, 0, 0, ALONE))
    next(batches)
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        next(batches)
        count += batch
    return count / (time.perf_counter() - began)


def main() -> None:
    """Parse, time, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="128x96", type=parse_size, help="crop HEIGHTxWIDTH (default 128x96)")
    parser.add_argument("--batch", default=32, type=int)
    parser.add_argument("--rounds", default=5, type=int, help="steps of every variant (default 5)")
    parser.add_argument("--networks", nargs="+", default=["hrnet_w32", "sdhrnet_w32", "sdhrnet_w16"])
    parser.add_argument("--compile", action="store_true", help="compiled variants too: minutes of compiling on a CPU")
    parser.add_argument("--quick", action="store_true", help="small crops, two rounds: under five minutes on two cores")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    if options.quick:
        options.size, options.batch, options.rounds = (64, 48), 32, 2
    phase = Phase(input_size=options.size, samples=1, batch=options.batch)
    ways = itertools.product(options.networks, ("float32", "bf16"), (False, True), (False, True)[: 1 + options.compile])
    variants = [Variant(*way, phase) for way in ways]
    rows, console = [], Console()
    for variant in track(variants, "warming up", console=Console(stderr=True)):
        variant.step()
    for _ in track(range(options.rounds), "timing", console=Console(stderr=True)):
        for variant in variants:
            variant.seconds.append(variant.step())
    loading = loader_speed(options.size, options.batch, 2 if options.quick else 5)
    height, width = options.size
    title = f"pictures per second of a training step, {height}x{width}, batch {options.batch}, {DEVICE.type}"
    table = Table("network", "arithmetic", "layout", "compiled", "pictures/s", "ratio", title=title)
    for variant in variants:
        layout = "channels-last" if variant.channels_last else "plain"
        ratio = variant.speed / variants[0].speed
        rows.append(
            {
                "network": variant.network,
                "precision": variant.precision,
                "layout": layout,
                "compiled": variant.compiled,
                "pictures_per_s": round(variant.speed, 2),
                "ratio": round(ratio, 3),
            }
        )
        row = variant.network, variant.precision, layout, "yes" if variant.compiled else "no"
        table.add_row(*row, f"{variant.speed:.1f}", f"{ratio:.2f}")
    console.print(table)
    best = max(variant.speed for variant in variants)
    console.print(
        f"the loader alone makes {loading:.0f} pictures/s in one process, {loading / best:.0f} times the fastest step; "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, {platform.machine()}"
    )
    if options.json:
        report = {
            "size": options.size,
            "batch": options.batch,
            "loader_pictures_per_s": round(loading, 1),
            "rows": rows,
        }
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
