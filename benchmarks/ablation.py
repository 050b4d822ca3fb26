"""What each part is worth: short runs of equal length that differ in one thing, over several seeds.

    python benchmarks/ablation.py network loss data --samples 24000 --seeds 0 1 --json ablation.json
    python benchmarks/ablation.py rate mix augmentation --init sdhrnet_w32_coco --size 96x72 --samples 12800 --seeds 0
    python benchmarks/ablation.py network --quick

Groups: `network` (Table 3 of the paper: HRNet-W32, SCR, SCR and DASP, all), `loss` (how heatmaps are learnt), `data`
(the mix with each source left out), `mix` (how often each source is drawn, who is left out, what pseudo joints count),
`rate`, `sigma`, `augmentation`. Every run starts from random weights, or with `--init` from a package's, sees the same
number of crops of one size with the rate falling to zero, and is scored with ground-truth boxes and flip test on the
configuration's validation set and, where it is at hand, on `lspet-val`, whose people tumble and hang. What is done
already stands in the JSON file and is not done again, so a run that was stopped goes on.
"""

import argparse
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from model.codec import HeatmapCodec
from model.crop import PADDING
from training.config import Phase, TrainConfig, data_folder, load_config
from training.distributed import Workers
from training.evaluation import LabelledCrops
from training.loader import Crops, draw_weights, loader
from training.loop import predict_average, training_people, validate
from training.pck import pck
from training.people import keep_crops, read_people
from training.publishing import parse_size
from training.trainer import Trainer
from training.validation import VALIDATION_SETS

ALONE = Workers(device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
RECIPE = "the recipe: SDHRNet-W32, cross-entropy, whole mix"
TUMBLING = VALIDATION_SETS["lspet-val"]
SHOWN = ("AP", "AP50", "PCK@0.2", f"{TUMBLING.name} PCK@0.2")

Change = Callable[[TrainConfig], dict[str, Any]]


def without(name: str) -> Change:
    """The mix without one set."""
    return lambda config: {"data": [entry for entry in config.data if entry.name != name]}


def drawn(**weights: float) -> Change:
    """The mix with other weights of some sets; `_` stands for `-` in their names."""
    return lambda config: {
        "data": [
            entry.model_copy(update={"weight": weights.get(entry.name.replace("-", "_"), entry.weight)})
            for entry in config.data
        ]
    }


def augmented(**changes: float) -> Change:
    """The recipe's augmentation with some ranges or chances changed."""
    return lambda config: {"augmentation": config.augmentation.model_copy(update=changes)}


def rate(factor: float) -> Change:
    """The recipe with its learning rate times `factor`."""
    return lambda config: {"learning_rate": factor * config.learning_rate}


GROUPS: dict[str, dict[str, Change]] = {
    "network": {
        "HRNet-W32": lambda _: {"network": "hrnet_w32"},
        "SCR": lambda _: {"network": "hrnet_w32", "switches": {"scr": True}},
        "SCR + DASP": lambda _: {"network": "hrnet_w32", "switches": {"scr": True, "dasp": True}},
        RECIPE: lambda _: {},  # SCR + DASP + SEM
    },
    "loss": {
        RECIPE: lambda _: {},  # cross-entropy
        "mean squared error": lambda _: {"loss": "mse"},
        "cross-entropy, 8 hardest joints": lambda _: {"hard_joints": 8},
    },
    "data": {
        RECIPE: lambda _: {},  # the whole mix
        "without wild (pseudo-labels)": without("wild-pseudo"),
        "without small COCO pictures": without("coco-train-small"),
        "without pseudo face joints": lambda config: {
            "data": [entry.model_copy(update={"extra_joints": None}) for entry in config.data]
        },
    },
    "mix": {
        RECIPE: lambda _: {},
        "all sets alike": drawn(coco_train=1, coco_train_small=1, lsp=1, lspet=1, wild_pseudo=1),
        "COCO twice as often": drawn(coco_train=4, coco_train_small=3),
        "LSPET as often as LSP": drawn(lspet=1),
        "people from 30 pixels on": lambda _: {"min_height": 30},
        "people from 100 pixels on": lambda _: {"min_height": 100},
        "people with 8 joints or more": lambda _: {"min_joints": 8},
        "pseudo joints count in full": lambda config: {
            "data": [entry.model_copy(update={"confidence": False}) for entry in config.data]
        },
    },
    "rate": {
        RECIPE: lambda _: {},
        "a quarter of the rate": rate(0.25),
        "half the rate": rate(0.5),
        "twice the rate": rate(2),
    },
    "sigma": {
        RECIPE: lambda _: {},
        "sigma 1.5 in place of 2": lambda _: {"sigma": 1.5},
        "sigma 3 in place of 2": lambda _: {"sigma": 3},
    },
    "augmentation": {
        RECIPE: lambda _: {},
        "weaker": augmented(scale=0.2, rotation=20, shift=0.04, half_body=0.1, photometric=0.2, blur=0, dropout=0),
        "stronger": augmented(
            scale=0.5, rotation=90, rotation_chance=0.8, shift=0.12, half_body=0.4, photometric=0.8, dropout=0.6
        ),
        "without boxes": augmented(dropout=0),
        "turned by up to 180 degrees": augmented(rotation=180),
        "weakest": augmented(scale=0.1, rotation=10, shift=0.02, half_body=0, photometric=0.1, blur=0, dropout=0),
    },
}


class Bench:
    """The crops of the whole mix, cut once, and the validation crops."""

    def __init__(self, base: TrainConfig, data: Path) -> None:
        self.base, self.data = base, data
        [phase] = base.phases
        self.size = phase.input_size
        people = training_people(base.model_copy(update={"min_joints": 1, "min_height": 0}), data)
        with Progress(console=Console(stderr=True)) as progress:
            task = progress.add_task("reading pictures", total=len(people))
            kept = keep_crops(people, self.size, lambda count: progress.advance(task, count))
        self.kept = {
            (base.data[person.set_index].name, person.annotation): crop
            for person, crop in zip(people, kept, strict=True)
        }
        judged = read_people(base.validation, data, base.skeleton)
        self.labelled = LabelledCrops.cut(judged, self.size, PADDING)
        self.tumbling: LabelledCrops | None = None
        if (data / TUMBLING.annotations).is_file():
            self.tumbling = LabelledCrops.cut(read_people(TUMBLING, data, base.skeleton), self.size, PADDING)

    def run(self, change: Change, seed: int, title: str) -> dict[str, float]:
        """Train one variant; its figures, and the seconds that its steps took."""
        config = self.base.model_copy(update={**change(self.base), "seed": seed})
        people = training_people(config, self.data)
        names = [config.data[person.set_index].name for person in people]
        kept = [self.kept[name, person.annotation] for name, person in zip(names, people, strict=True)]
        weights = draw_weights(people, config)
        [phase] = config.phases
        codec = HeatmapCodec(self.size, config.sigma_at(self.size), config.activation)
        with tempfile.TemporaryDirectory() as folder, Progress(console=Console(stderr=True)) as progress:
            trainer = Trainer(config, Path(folder), ALONE)
            crops = Crops(people, kept, self.size, trainer.skeleton, config.augmentation, seed)
            task = progress.add_task(title, total=config.samples)
            batches = iter(loader(crops, weights, phase.batch, 0, config.workers, ALONE))
            began = time.monotonic()
            while trainer.samples < config.samples:
                trainer.train_batch(next(batches), phase, codec, people)
                progress.update(task, completed=trainer.samples)
            seconds = time.monotonic() - began
            figures = {**validate(trainer, self.labelled, codec, self.data), "seconds": round(seconds, 1)}
            if self.tumbling is not None:
                found = predict_average(trainer, self.tumbling, codec)
                metrics = pck(self.tumbling.people, found.keypoints, trainer.skeleton).metrics
                figures[f"{TUMBLING.name} PCK@0.2"] = metrics["PCK@0.2"]
            return figures


def main() -> None:
    """Parse, train what is missing, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="+", choices=GROUPS)
    parser.add_argument("--config", default="shared_small", help="where data and recipe come from")
    parser.add_argument("--samples", default=24_000, type=int, help="crops that every run sees (default 24000)")
    parser.add_argument("--size", default="64x48", type=parse_size, help="crop HEIGHTxWIDTH (default 64x48)")
    parser.add_argument("--init", metavar="PACKAGE", help="weights to start from (default: random)")
    parser.add_argument("--seeds", nargs="+", default=[0, 1], type=int)
    parser.add_argument("--quick", action="store_true", help="256 crops and one seed: shows that it runs, nothing else")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    if options.quick:
        options.samples, options.seeds = 256, [0]
    logging.basicConfig(level=logging.WARNING)
    base = load_config(options.config)
    phase = Phase(input_size=options.size, samples=options.samples, batch=64)
    fields = {"phases": [phase], "init": options.init, "decay_from": 0.3}
    fields |= {"warmup_samples": options.samples // 10, "ema": 0.99}
    bench = Bench(base.model_copy(update=fields), data_folder())
    shown = {"size": list(options.size), "samples": options.samples, "config": options.config, "init": options.init}
    rows: list[dict[str, Any]] = []
    if options.json and options.json.is_file():
        rows = json.loads(options.json.read_text())["rows"]
    for seed in options.seeds:
        for group in options.groups:
            for name, change in GROUPS[group].items():
                key = {"group": group, "name": name, "seed": seed, **shown}
                if any(key.items() <= row.items() for row in rows):
                    continue
                alike = {"name": name, "seed": seed, **shown}  # the unchanged recipe stands in several groups
                same = [row for row in rows if alike.items() <= row.items()]
                figures = same[0]["figures"] if same else bench.run(change, seed, f"{group}: {name}, seed {seed}")
                rows.append({**key, "figures": figures})
                if options.json:
                    beside = options.json.with_suffix(".partial")
                    beside.write_text(json.dumps({"rows": rows}, indent=2) + "\n")
                    beside.replace(options.json)
    for group in options.groups:
        print_table(group, [row for row in rows if row["group"] == group and shown.items() <= row.items()], options)


def print_table(group: str, rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Mean and range over the seeds."""
    height, width = options.size
    seeds = len({row["seed"] for row in rows})
    title = f"{group}: {options.samples} crops of {height}x{width}, {seeds} seeds, mean (least to most)"
    table = Table(group, *SHOWN, "pictures/s", title=title)
    for name in GROUPS[group]:
        found = [row["figures"] for row in rows if row["name"] == name]
        if not found:
            continue
        cells = []
        for figure in SHOWN:
            values = [figures[figure] for figures in found if figure in figures]
            cells.append(f"{statistics.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})" if values else "")
        speed = statistics.mean(options.samples / figures["seconds"] for figures in found)
        table.add_row(name, *cells, f"{speed:.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
