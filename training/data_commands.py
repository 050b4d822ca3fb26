"""The sub-commands of `pose data`: their arguments, and what they answer (text to print, exit status).

What they do is imported when they run, so that `pose --help` answers at once.
"""

import argparse
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training.config import DataSet

Answer = tuple[str, int]

EXAMPLES = """examples:
  pose data fetch coco                                  train2017, val2017 and their keypoints, 20 GB
  pose data fetch coco --only annotations --only val    only what validation needs, 1 GB
  pose data fetch mpii                                  pictures and the official .mat, 13 GB
  pose data check shared_small:lsp                      a set of a configuration
  pose data check mine/people.json --images mine/jpg --sheet people.jpg
  pose data pack shared_small:coco-train -o packs/coco  person crops as tar files, to move to a GPU machine
  pose data show shared_small -o seen.jpg               what the network sees, and its targets
"""
SET_HELP = (
    "CONFIG:NAME (a set of a configuration, or its validation set), an annotation file (COCO-format .json, MPII's "
    ".mat, HRNet's MPII .json) or a pack's folder; files are looked for here, then in $POSE_DATA"
)
FINDINGS_SHOWN = 10  # of each kind in the text; --json has all


def add_data_parsers(parser: argparse.ArgumentParser) -> None:
    """Give `pose data` its sub-commands; each leaves its function in `options.action`."""
    parser.epilog = EXAMPLES
    commands = parser.add_subparsers(dest="action_name", required=True, metavar="WHAT")

    def command(name: str, action: Callable[[argparse.Namespace], Answer], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name, help=text, description=text[0].upper() + text[1:] + ".",
            epilog="\n".join(["examples:", *(line for line in EXAMPLES.splitlines() if f"data {name}" in line)]),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        sub.set_defaults(action=action)
        return sub

    sub = command("fetch", fetch, "download COCO or MPII from their official hosts, resumable and checked")
    sub.add_argument("set", choices=["coco", "mpii"])
    sub.add_argument("-o", "--output", type=Path, help="data folder (default: $POSE_DATA, else ../shared/data)")
    sub.add_argument(
        "--only", action="append", choices=["annotations", "val", "train"], help="only this part; repeatable"
    )

    sub = command("check", check, "count a set's labels and look for broken pictures and suspicious people")
    _add_set(sub)
    sub.add_argument("--json", type=Path, help="write all findings to this file")
    sub.add_argument("--sheet", type=Path, help="write a picture of random and of suspicious people (.jpg)")

    sub = command("pack", pack, "write the people of a set as crops in sharded tar files")
    _add_set(sub)
    sub.add_argument("-o", "--output", type=Path, required=True, help="the pack's folder; an older pack is replaced")
    sub.add_argument("--size", default="256x192", help="largest crop HxW that will be trained on (default: 256x192)")
    sub.add_argument("--licence", help="where SET is a file: goes into the index and from there into cards")

    sub = command("show", show, "draw what the network sees and its targets, phase by phase")
    sub.add_argument("config", help="a shipped configuration's name or a YAML file")
    sub.add_argument("-o", "--output", type=Path, required=True, metavar="PICTURE", help="a .jpg or .png")
    sub.add_argument("--people", type=int, default=16, help="crops per phase (default: 16)")


def _add_set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("set", metavar="SET", help=SET_HELP)
    parser.add_argument(
        "--images", type=Path, help="where SET is a file: its pictures (default: the folder images beside it)"
    )


def fetch(options: argparse.Namespace) -> Answer:
    """`pose data fetch`."""
    from training.archives import ARCHIVES, TERMS
    from training.fetch import fetch as run

    data = options.output or Path(os.environ.get("POSE_DATA", "../shared/data"))
    archives = ARCHIVES[options.set]
    parts = [archive.part for archive in archives]
    wanted = options.only or parts
    if unknown := [part for part in wanted if part not in parts]:
        from training.config import ConfigError

        raise ConfigError(f"{options.set} has no part {unknown[0]!r}, only {', '.join(parts)}")
    chosen = [archive for archive in archives if archive.part in wanted]
    with progress(in_bytes=True) as tick:
        done = run(chosen, data, tick)
    lines = [f"{data / archive.target}  {archive.part}: {done[archive.part]}" for archive in chosen]
    return "\n".join([*lines, f"terms: {TERMS[options.set]}"]), 0


def check(options: argparse.Namespace) -> Answer:
    """`pose data check`; status 1 when a picture is broken."""
    import json

    from training.checking import check_set
    from training.people import read_set

    data, root = find_set(options.set, options.images)
    labelled = read_set(data, root)
    with progress() as tick:
        report = check_set(labelled, lambda done, total: tick("reading pictures", done, total))
    lines = [f"{data.name}: {report.people} people in {report.pictures} pictures", "labelled joints"]
    lines += [f"  {joint:16} {count:8}" for joint, count in report.joints.items()]
    lines.append(f"broken pictures: {len(report.broken)}")
    lines += [f"  {path}: {reason}" for path, reason in list(report.broken.items())[:FINDINGS_SHOWN]]
    lines.append(f"labels to look at: {len(report.findings)}")
    for kind, count in report.suspicions.items():
        lines.append(f"  {kind}: {count}")
        chosen = [finding for finding in report.findings if finding.kind == kind][:FINDINGS_SHOWN]
        for finding in chosen:
            who = "" if finding.annotation is None else f"annotation {finding.annotation}, "
            lines.append(f"    {who}{Path(finding.picture).name}: {finding.text}")
        if count > len(chosen):
            lines.append(f"    and {count - len(chosen)} more (--json FILE has all)")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"set": data.name, **report.as_json()}, indent=2) + "\n")
    if options.sheet and len(report.broken) < report.pictures:
        from training.showing import write_people_sheet

        write_people_sheet(options.sheet, labelled, report)
        lines.append(f"people drawn in {options.sheet}")
    return "\n".join(lines), 1 if report.broken else 0


def pack(options: argparse.Namespace) -> Answer:
    """`pose data pack`."""
    from training.packing import write_pack
    from training.publishing import parse_size

    data, root = find_set(options.set, options.images, options.licence)
    size = parse_size(options.size)
    with progress() as tick:
        done = write_pack(data, root, options.output, size, lambda done, total: tick("cutting out people", done, total))
    text = f"packed {done.people} people into {done.shards} shard{'s' * (done.shards > 1)}, {done.bytes / 1e6:.1f} MB"
    return f"{text}: {done.folder}\ntrain on it with `annotations: {done.folder}`", 0


def show(options: argparse.Namespace) -> Answer:
    """`pose data show`."""
    from training.config import data_folder, load_config
    from training.loop import training_people
    from training.showing import write_training_sheet

    config = load_config(options.config)
    people = training_people(config, data_folder())
    write_training_sheet(options.output, config, people, max(1, options.people))
    return f"drawn {options.output}: the first crops of each phase, out of {len(people)} people", 0


def find_set(name: str, images: Path | None, licence: str | None = None) -> "tuple[DataSet, Path]":
    """The set that `name` means (see `SET_HELP`) and the data folder its paths are relative to.

    Raises:
        ConfigError: there is no such set, and what was looked for.
    """
    from training.config import ConfigError, DataSet, data_folder, load_config

    config_name, colon, set_name = name.rpartition(":")
    if colon and not Path(name).exists():
        if images is not None or licence is not None:
            raise ConfigError(f"{name}: the configuration says where the pictures are and what their licence is")
        config = load_config(config_name)
        sets = {entry.name: entry for entry in (config.validation, *config.data)}
        if set_name not in sets:
            raise ConfigError(f"{config_name} has no set {set_name!r}; it has {', '.join(sets)}")
        return sets[set_name], data_folder().resolve()
    named = Path(os.environ.get("POSE_DATA", "../shared/data"))
    root = named.resolve() if named.is_dir() else Path.cwd()
    path = next((place for place in (Path.cwd() / name, root / name) if place.exists()), None)
    if path is None:
        raise ConfigError(f"no set {name!r}: neither CONFIG:NAME nor a file here or in {root}")
    if images is None:
        folder = path.parent / "images"
    else:
        folder = next((place for place in (Path.cwd() / images, root / images) if place.is_dir()), images)
    if not folder.is_dir() and path.is_file():
        raise ConfigError(f"{name}: no picture folder {folder}: say with --images where its pictures are")
    return DataSet(
        name=path.stem, annotations=str(path), images=str(folder), licence=licence or "not stated"
    ), root  # fmt: skip


@contextmanager
def progress(in_bytes: bool = False) -> Iterator[Callable[[str, int, int | None], object]]:
    """A progress bar on stderr: call what this yields with what is being done, how much is done, and of how much."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    amount: list[Any] = [DownloadColumn(), TransferSpeedColumn()] if in_bytes else [MofNCompleteColumn()]
    columns = (TextColumn("{task.description}"), BarColumn(), *amount, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        tasks: dict[str, Any] = {}

        def tick(what: str, done: int, total: int | None) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        yield tick
