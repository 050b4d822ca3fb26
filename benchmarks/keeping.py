"""What it costs a training step on a CPU that malloc returns freed memory to the system, as it does by default.

    python benchmarks/keeping.py
    python benchmarks/keeping.py --size 64x48 --batch 8 --rounds 1 --steps 2

`pose train` has malloc keep it (training/memory.py). Every row runs in processes of its own, in turn, on one thread.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from train_speed import Variant

from training.config import Phase
from training.memory import keep_memory
from training.publishing import parse_size

WAYS = ("returned", "kept")
WARM_UP = 3  # steps until malloc holds what it will hold


def measure(size: tuple[int, int], batch: int, steps: int) -> dict[str, float]:
    """Median pictures a second of float32 SDHRNet-W32's training step, page faults a step, peak memory in MB."""
    torch.set_num_threads(1)
    variant = Variant("sdhrnet_w32", "float32", True, False, Phase(input_size=size, samples=1, batch=batch))
    for _ in range(WARM_UP):
        variant.step()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    variant.seconds = [variant.step() for _ in range(steps)]
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {"speed": variant.speed, "faults": (usage.ru_minflt - faults) / steps, "memory": usage.ru_maxrss / 1024}


def main() -> None:
    """Parse, run in turn, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="128x96", help="crop HEIGHTxWIDTH (default 128x96)")
    parser.add_argument("--batch", default=24, type=int)
    parser.add_argument("--rounds", default=3, type=int, help="processes of every row, in turn (default 3)")
    parser.add_argument("--steps", default=6, type=int, help="that each process times (default 6)")
    parser.add_argument("--child", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        if options.child == WAYS[1] and not keep_memory():
            parser.error("malloc cannot be asked to keep memory here")
        sys.stdout.write(json.dumps(measure(parse_size(options.size), options.batch, options.steps)))
        return
    rows: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for way in track(WAYS * options.rounds, "timing", console=Console(stderr=True)):
        command = [sys.executable, __file__, *sys.argv[1:], "--child", way]
        rows[way].append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))
    medians = {
        way: {name: statistics.median(one[name] for one in measured) for name in measured[0]}
        for way, measured in rows.items()
    }
    title = f"training step of {options.batch} crops of {options.size}, one thread"
    table = Table("freed memory is", "pictures/s", "ratio", "page faults a step", "peak memory, MB", title=title)
    for way, one in medians.items():
        ratio = one["speed"] / medians[WAYS[0]]["speed"]
        table.add_row(way, f"{one['speed']:.2f}", f"{ratio:.2f}", f"{one['faults']:.0f}", f"{one['memory']:.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
