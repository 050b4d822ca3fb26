"""Where a request's time goes at concurrency 1: inside the networks, and in everything around them, stage by stage.

    python benchmarks/overhead.py --quick
    python benchmarks/overhead.py --requests 500 --json overhead.json

A real `pose serve` answers one client. Medians come from the client's own clock and from `timings_ms` of every answer;
means by stage from `/metrics`, before and after. What goes on inside a stage (the engine's own time, the JSON) is timed
in this process, on the same pictures, while the server stands still.

Added by the service: what a request takes as its client sees it, less decoding, detector and pose network. The target
is at most 3 ms (median).
"""

import argparse
import json
import statistics
import sys
import tempfile
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bare import Bare
from photographs import GROUPS, SIZES, PictureSet, make_pictures
from rich.console import Console
from rich.progress import track
from rich.table import Table
from serve import execute, machine
from servers import ServerProcess, awake

TARGET = 3.0  # ms
STAGES = ("decode", "queue", "detect", "crop", "pose", "keypoints", "encode")
MODELS = ("decode", "detect", "pose")  # not counted as added
WHAT = {
    "decode": "JPEG to pixels",
    "queue": "waiting for a thread or a network",
    "detect": "the detector's stage",
    "detect: engine": "  of it the network",
    "detect: around": "  of it letterbox, suppression, boxes",
    "crop": "cutting people out",
    "pose": "the pose network's stage",
    "pose: engine": "  of it the network",
    "pose: around": "  of it heatmaps to keypoints",
    "keypoints": "back to the picture, scores",
    "encode": "drawing (not asked for here)",
    "event loop": "between the stages",
    "JSON": "building and writing the answer",
    "receiving": "middleware, form, routing",
    "HTTP": "uvicorn, loopback, the client",
    "client sees": "all of it",
}


def read_metrics(port: int) -> dict[str, float]:
    """Samples of `/metrics` by name and labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[:1] != "#")}


def means(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """Mean ms per request between two looks at `/metrics`: every stage, and `request`, from headers to answer."""

    def total(name: str) -> float:
        return after.get(name, 0.0) - before.get(name, 0.0)

    requests = total('pose_request_duration_seconds_count{route="/pose"}')
    found = {stage: total(f'pose_stage_duration_seconds_sum{{stage="{stage}"}}') for stage in STAGES}
    found["request"] = total('pose_request_duration_seconds_sum{route="/pose"}')
    return {name: 1000 * seconds / requests for name, seconds in found.items()}


def measure(server: ServerProcess, bare: Bare, one: PictureSet, requests: int) -> dict[str, Any]:
    """One picture set: mean ms by stage, and the medians of what the service adds."""
    path = one.paths[0]
    with awake(server):
        server.measure([path], 1, 60, requests=min(20, requests))
        before = read_metrics(server.port)
        loop = server.measure([path], 1, 600, requests=requests).loop
        stage = means(before, read_metrics(server.port))
    bare.measure_rest(path)
    answers = loop.timings
    rows = {name: stage[name] for name in STAGES}
    for name in ("detect", "pose"):
        step = bare.step(name)
        rows |= {f"{name}: engine": 1000 * step.engine, f"{name}: around": 1000 * step.around}
    total = statistics.mean(answer["total"] for answer in answers)
    client = [1000 * seconds for seconds in loop.latencies]
    rows["event loop"] = total - sum(stage[name] for name in STAGES)
    rows["JSON"] = 1000 * bare.step("json").around
    rows["receiving"] = stage["request"] - total - rows["JSON"]
    rows["HTTP"] = statistics.mean(client) - stage["request"]
    rows["client sees"] = statistics.mean(client)
    models = [sum(answer[name] for name in MODELS) for answer in answers]
    inside = [answer["total"] - model for answer, model in zip(answers, models, strict=True)]
    added = [seconds - model for seconds, model in zip(client, models, strict=True)]
    return {
        "pictures": one.size,
        "people": round(one.people, 2),
        "requests": len(answers),
        "mean_ms": {name: round(rows[name], 3) for name in WHAT},
        "inside_ms": round(statistics.median(inside), 3),
        "added_ms": round(statistics.median(added), 3),
    }


def run(options: argparse.Namespace, console: Console) -> None:
    """Measure and report."""
    bare = Bare()
    sizes, groups = (SIZES[:1], ["1", "3"]) if options.quick else (SIZES, list(GROUPS))
    requests = min(options.requests, 40) if options.quick else options.requests
    with tempfile.TemporaryDirectory() as temporary:
        sets = make_pictures(Path(temporary), bare.count, sizes, groups)
        server = ServerProcess("ours", Path(temporary) / "log")
        try:
            server.wait(sets[0].paths[0])
            server.pause()
            shown = Console(stderr=True)
            found = [measure(server, bare, one, requests) for one in track(sets, "measuring", console=shown)]
        finally:
            server.end()
    print_report(found, console)
    if options.json:
        report = {"rows": found, "target_ms": TARGET, "machine": machine()}
        options.json.write_text(json.dumps(report, indent=2) + "\n")


def print_report(found: Sequence[Mapping[str, Any]], console: Console) -> None:
    """The table, and what is added beside its target."""
    heads = [f"{one['pictures']}\n{one['people']:g} people" for one in found]
    table = Table("stage", "what", *heads, title="concurrency 1, mean ms per request")
    for name, what in WHAT.items():
        if name == "client sees":
            table.add_section()
        table.add_row(name if what[0] != " " else "", what, *(f"{one['mean_ms'][name]:.2f}" for one in found))
    console.print(table)
    for one in found:
        verdict = "pass" if one["added_ms"] <= TARGET else "miss"
        console.print(
            f"{one['pictures']}, {one['people']:g} people: the service adds {one['added_ms']:.2f} ms (median) to "
            f"decoding and models, {one['inside_ms']:.2f} of them between the body's arrival and the answer; target at "
            f"most {TARGET:g}: {verdict}"
        )
    console.print(", ".join(f"{key} {value}" for key, value in machine().items()), highlight=False)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=300, help="of each picture (default 300)")
    parser.add_argument("--quick", action="store_true", help="40 requests, small pictures of 1 and 3 people")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(execute(run, parse()))
