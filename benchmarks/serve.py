"""How fast the service is, beside what people write today and beside other frameworks that carry the same engines.

Servers: `ours` (`pose serve`), `naive` (naive_server.py), `litserve` and `ray` (the service's pipeline and engines
under LitServe and Ray Serve, with their batching). Every server is started once and stands still while another is
measured; they take turns row by row, round after round, so that a noisy machine is unfair to all alike. The client is a
process of its own: a closed loop over keep-alive connections. Figures of a row are pooled over the rounds.

`CPU` is the server's processor time per picture, `memory` the most that all its processes held (resident; memory that
they share counts once for each).
"""

import argparse
import contextlib
import json
import os
import platform
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import targets
from bare import Bare, percentile
from photographs import CROWD, GROUPS, SIZES, PictureSet, make_crowd, make_pictures
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from servers import SERVERS, Measured, ServerProcess, awake, missing

from model.errors import UserError

EXAMPLES = """examples:
  python benchmarks/serve.py --quick                        under five minutes on two cores
  python benchmarks/serve.py --json serve.json              everything, about half an hour
  python benchmarks/serve.py --servers ours naive --concurrency 8 --people 1 3 --rows-only
"""
UNBATCHED = "ours, POSE_MAX_BATCH=1"
WIDTH = 120  # of what is written to a file
WARM = 2.0  # seconds of mixed load before anything is measured
QUICK = (("640x480", "1"), ("640x480", "3"), ("640x480", "12+"), ("1920x1080", "3"))


class Bench:
    """Servers, pictures, and what was measured so far.

    Args:
        extras: also start the service without batching, and measure the picture with many people.
    """

    def __init__(
        self, names: Sequence[str], sets: Sequence[PictureSet], concurrency: Sequence[int], seconds: float,
        crowd: PictureSet | None, console: Console,
    ) -> None:  # fmt: skip
        self.sets, self.concurrency, self.seconds, self.crowd, self.console = sets, concurrency, seconds, crowd, console
        self.names = [*names, UNBATCHED] if crowd else list(names)
        self.servers: dict[str, ServerProcess] = {}
        self.found: dict[tuple[str, int, int], list[Measured]] = {}
        self.crowds: list[Measured] = []

    @contextlib.contextmanager
    def running(self, folder: Path, progress: Progress) -> Iterator[None]:
        """Every server, warm and paused; ended when this returns, however it does."""
        pictures = [path for one in self.sets for path in one.paths]
        with contextlib.ExitStack() as stack:
            task = progress.add_task("starting", total=len(self.names))
            for name in self.names:
                progress.update(task, description=f"starting {name}")
                variables = {"POSE_MAX_BATCH": "1"} if name == UNBATCHED else {}
                key = "ours" if name == UNBATCHED else name
                server = ServerProcess(key, folder / f"{len(self.servers)}.log", variables)
                stack.callback(server.end)
                server.wait(pictures[0])
                server.measure(pictures, 1, 60, requests=len(pictures))
                server.measure(pictures, min(8, max(self.concurrency)), WARM)
                server.pause()
                self.servers[name] = server
                progress.advance(task)
            progress.remove_task(task)
            yield

    def plan(self) -> list[tuple[str, int, int]]:
        """One round: (server, picture set, concurrency), the servers taking turns."""
        return [
            (name, i, c)
            for i, one in enumerate(self.sets)
            for c in self.concurrency
            for name in self.names
            if name != UNBATCHED or (c == 1 and one.group == "1")
        ]

    def round(self, bare: Bare, progress: Progress) -> None:
        """Measure every row once, and the bare engines."""
        plan = self.plan()
        task, seen = progress.add_task("measuring", total=len(plan)), -1
        if self.crowd:
            with awake(self.servers["ours"]) as server:
                self.crowds.append(server.measure(self.crowd.paths, 1, self.seconds, query=f"?max_persons={CROWD}"))
        for name, i, c in plan:
            one = self.sets[i]
            if self.crowd and i != seen:
                progress.update(task, description=f"bare engines: {one.size}, {one.group} people")
                bare.measure(one.paths[0])
                seen = i
            progress.update(task, description=f"{name}: {one.size}, {one.group} people, concurrency {c}")
            with awake(self.servers[name]) as server:
                server.measure(one.paths[:1], 1, 60, requests=1)
                self.found.setdefault((name, i, c), []).append(server.measure(one.paths, c, self.seconds))
            progress.advance(task)
        progress.remove_task(task)

    def rows(self, *, unbatched: bool = False) -> list[dict[str, Any]]:
        """As the JSON file has them, by pictures, concurrency and server."""
        keys = [key for key in self.plan() if key in self.found and (key[0] == UNBATCHED) == unbatched]
        return [self._row(*key) for key in keys]

    def _row(self, name: str, i: int, c: int) -> dict[str, Any]:
        found = self.found[name, i, c]
        latencies = [1000 * seconds for one in found for seconds in one.loop.latencies]
        p50, p95, p99 = (round(percentile(latencies, share), 2) for share in (0.5, 0.95, 0.99))
        return {
            "server": name,
            "pictures": self.sets[i].size,
            "people": round(self.sets[i].people, 2),
            "concurrency": c,
            "pictures_per_s": round(len(latencies) / sum(one.loop.seconds for one in found), 3),
            "p50_ms": p50,
            "p95_ms": p95,
            "p99_ms": p99,
            "cpu_ms": round(1000 * sum(one.cpu for one in found) / len(latencies), 2),
            "rss_mb": round(max(one.memory for one in found) / 2**20, 1),
        }

    def persons_per_s(self, row: dict[str, Any]) -> float:
        """People in the answers of a row, per second."""
        found = next(
            value for (name, i, c), value in self.found.items()
            if (name, self.sets[i].size, round(self.sets[i].people, 2), c)
            == (row["server"], row["pictures"], row["people"], row["concurrency"])
        )  # fmt: skip
        return sum(one.loop.persons for one in found) / sum(one.loop.seconds for one in found)


def machine() -> dict[str, Any]:
    """Where the figures come from."""
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    packages = {name: version(name) for name in ("torch", "openvino", "ultralytics")}
    return {"cpu": cpu, "cores": len(os.sched_getaffinity(0)), "python": platform.python_version(), **packages}


def print_report(bench: Bench, bare: Bare, rows: list[dict[str, Any]], checked: list[targets.Target]) -> None:
    """The tables and what they rest on."""
    console = bench.console
    columns = (
        "pictures",
        "people",
        "clients",
        "server",
        "pictures/s",
        "people/s",
        "p50",
        "p95",
        "p99",
        "CPU",
        "memory",
    )
    table = Table(*columns, title="closed loop; p50 to p99 and CPU per picture in ms, memory in MB")
    last = None
    for row in rows:
        place = row["pictures"], f"{row['people']:g}", str(row["concurrency"])
        if last not in (None, place):
            table.add_section()
        shown = place if last != place else ("", "", "")
        last = place
        figures = (f"{row[key]:.0f}" for key in ("p50_ms", "p95_ms", "p99_ms", "cpu_ms", "rss_mb"))
        table.add_row(
            *shown, row["server"], f"{row['pictures_per_s']:.2f}", f"{bench.persons_per_s(row):.1f}", *figures
        )
    console.print(table)
    if bench.crowd:
        steps = (bare.step("detect 1"), bare.step("detect 8"), bare.step("pose 8"))
        one, eight, pose = (1000 * step.engine for step in steps)
        console.print(
            f"compute bound: the bare engines take {one:.1f} ms for a picture in the detector ({eight / 8:.1f} in "
            f"batches of 8) and {pose / 8:.1f} ms for a person in the pose network (batches of 8), all threads"
        )
        for one_set in bench.sets:
            ours = [r for r in rows if r["server"] == "ours" and r["pictures"] == one_set.size
                    and r["people"] == round(one_set.people, 2)]  # fmt: skip
            if ours:
                bound = 1 / bare.bound(one_set.people)
                shares = ", ".join(f"{r['pictures_per_s'] / bound:.2f} at {r['concurrency']}" for r in ours)
                most = f"{one_set.size}, {one_set.people:.3g} people: at most {bound:.1f} pictures/s"
                console.print(f"  {most}; ours reaches {shares}")
        console.print(targets.show(checked))
    for one_set in [*bench.sets, *([bench.crowd] if bench.crowd else [])]:
        console.print(
            f"{one_set.size}, {one_set.group} people: {len(one_set.paths)} pictures, {one_set.people:.3g} people each, "
            f"from {one_set.source}", highlight=False,
        )  # fmt: skip
    loops = [one.loop for found in bench.found.values() for one in found]
    client = sum(loop.cpu for loop in loops) / sum(len(loop.latencies) for loop in loops)
    console.print(f"the client itself used {1000 * client:.1f} ms of CPU per picture, its start included")
    console.print(", ".join(f"{key} {value}" for key, value in machine().items()), highlight=False)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--servers", nargs="+", choices=SERVERS, help="default: all that are installed")
    parser.add_argument("--concurrency", nargs="+", type=int, metavar="N", help="connections (default 1 8 32)")
    parser.add_argument("--people", nargs="+", choices=GROUPS, help="people per picture (default: all)")
    parser.add_argument("--sizes", nargs="+", choices=[f"{w}x{h}" for w, h in SIZES], help="default: all")
    parser.add_argument("--seconds", type=float, help="of each row and round (default 5)")
    parser.add_argument("--rounds", type=int, help="default 3")
    parser.add_argument("--rows-only", action="store_true", help="leave out the compute bound and the targets")
    parser.add_argument("--quick", action="store_true", help="fewer rows, one short round: under five minutes")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    options.concurrency = options.concurrency or ([1, 8] if options.quick else [1, 8, 32])
    options.seconds = options.seconds or (2.0 if options.quick else 5.0)
    options.rounds = options.rounds or (1 if options.quick else 3)
    return options


def choose(options: argparse.Namespace, console: Console) -> list[str]:
    """The servers to measure; says which are left out.

    Raises:
        UserError: one that was asked for is not installed.
    """
    lacking = {name: text for name in options.servers or SERVERS if (text := missing(name))}
    if options.servers and lacking:
        raise UserError("\n".join(lacking.values()))
    for text in lacking.values():
        console.print(text, highlight=False, markup=False)
    return [name for name in SERVERS if name in (options.servers or SERVERS) and name not in lacking]


def run(options: argparse.Namespace, console: Console) -> None:
    """Measure and report."""
    names = choose(options, console)
    bare = Bare()
    with tempfile.TemporaryDirectory() as temporary, Progress(console=Console(stderr=True)) as progress:
        folder = Path(temporary)
        sizes = [size for size in SIZES if not options.sizes or f"{size[0]}x{size[1]}" in options.sizes]
        sets = make_pictures(folder, bare.count, sizes, options.people or list(GROUPS))
        if options.quick and not options.people and not options.sizes:
            sets = [one for one in sets if (one.size, one.group) in QUICK]
        extras = "ours" in names and not options.rows_only
        crowd = make_crowd(folder, bare.count) if extras else None
        bench = Bench(names, sets, options.concurrency, options.seconds, crowd, console)
        with bench.running(folder, progress):
            rounds = progress.add_task("rounds", total=options.rounds)
            for _ in range(options.rounds):
                bench.round(bare, progress)
                progress.advance(rounds)
    rows = bench.rows()
    report: dict[str, Any] = {"rows": rows}
    checked: list[targets.Target] = []
    if crowd:
        latencies = [seconds for one in bench.crowds for seconds in one.loop.latencies]
        limit = bare.step("detect 1").engine + CROWD / 8 * bare.step("pose 8").engine
        checked = targets.check_rows(rows, bare.bound)
        checked.append(targets.check_crowd(percentile(latencies, 0.5), limit))
        checked.append(targets.check_idle(rows, bench.rows(unbatched=True)))
        names_of_steps = ("detect 1", "detect 8", "pose 1", "pose 8")
        bare_ms = {name: round(1000 * bare.step(name).engine, 3) for name in names_of_steps}
        report |= {"bare_ms": bare_ms, "targets": targets.as_json(checked)}
    print_report(bench, bare, rows, checked)
    if options.json:
        options.json.write_text(json.dumps(report | {"machine": machine()}, indent=2) + "\n")


def execute(command: Callable[[argparse.Namespace, Console], None], options: argparse.Namespace) -> int:
    """Run a benchmark; the exit status: 0; 2 for an error that a user can mend; 130 after ^C."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers are ended
    try:
        command(options, Console(width=None if sys.stdout.isatty() else WIDTH))
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(execute(run, parse()))
