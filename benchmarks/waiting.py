"""What waiting for each other costs PyTorch's threads on a CPU, with cores of their own and with busy neighbours.

    python benchmarks/waiting.py
    python benchmarks/waiting.py --rounds 1 --batches 2

Every parallel loop ends with threads that wait for the last one. They spin, which keeps that last one off its core
where something else wants it. `pose` sets GOMP_SPINCOUNT=10000, a thirtieth of GNU OpenMP's default; then they sleep.
Every row runs in a process of its own, in turn, beside as many busy processes as the machine has cores, or none.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

from rich.console import Console
from rich.table import Table

DEFAULT = "PyTorch's default"
VARIANTS: dict[str, dict[str, str]] = {
    DEFAULT: {},
    "GOMP_SPINCOUNT=10000, as `pose` sets it": {"GOMP_SPINCOUNT": "10000"},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
}
BUSY = "while True: pass"


def measure(batches: int) -> float:
    """Crops of 160x120 a second of float32 SDHRNet-W32 in batches of eight, by all of PyTorch's threads."""
    import torch

    from model.networks import build

    network = build("sdhrnet_w32", 17).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    crops = torch.zeros(8, 3, 160, 120).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        network(crops)
        began = time.monotonic()
        for _ in range(batches):
            network(crops)
    return 8 * batches / (time.monotonic() - began)


def run(variables: dict[str, str], batches: int, neighbours: int) -> float:
    """`measure` in a process with these variables, beside `neighbours` busy ones."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP_", "OMP_"))}
    busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(neighbours)]
    try:
        command = [sys.executable, __file__, "--batches", str(batches), "--child"]
        done = subprocess.run(command, env=inherited | variables, check=True, capture_output=True, text=True)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    return float(done.stdout)


def main() -> None:
    """Parse, run in turn, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", default=3, type=int, help="of every row and column, in turn (default 3)")
    parser.add_argument("--batches", default=6, type=int, help="that each run times (default 6)")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        sys.stdout.write(str(measure(options.batches)))
        return
    cores = len(os.sched_getaffinity(0))
    rates: dict[tuple[str, int], list[float]] = {}
    for _ in range(options.rounds):
        for name, variables in VARIANTS.items():
            for neighbours in (0, cores):
                rates.setdefault((name, neighbours), []).append(run(variables, options.batches, neighbours))
    medians = {key: statistics.median(values) for key, values in rates.items()}
    table = Table("threads wait", "alone, crops/s", "ratio", f"beside {cores} busy processes, crops/s", "ratio")
    for name in VARIANTS:
        cells = []
        for neighbours in (0, cores):
            rate = medians[name, neighbours]
            cells += [f"{rate:.1f}", f"{rate / medians[DEFAULT, neighbours]:.2f}"]
        table.add_row(name, *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
