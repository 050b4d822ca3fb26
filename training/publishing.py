"""`pose publish`: a run's averaged weights become a package, validated in the very form it will be served in."""

import datetime
import tempfile
from pathlib import Path

from model.codec import STRIDE
from model.crop import PADDING
from model.errors import PackageError, UserError
from model.package import CARD, Architecture, Codec, Evaluation, load_package, read_card, write_package
from model.package import DataSet as CardDataSet
from model.skeletons import SKELETONS
from training.checkpoint import LATEST, load_checkpoint
from training.config import TrainConfig
from training.loop import training_people
from training.provenance import git_commit
from training.validation import validate_package

DECIDING = ("coco-val", "AP")  # the figure that a new package must not lose


class PublishError(UserError):
    """The run cannot be published; the message says why and what would."""


def publish_run(
    run: Path, data: Path, packages: Path, size: tuple[int, int] | None = None, *, force: bool = False
) -> Path:
    """Write `packages/<name of the run's configuration>`; returns its folder.

    Args:
        run: folder that `pose train` wrote.
        data: folder of the validation sets.
        size: input (height, width) to serve at; by default the size the run ended with.
        force: replace a package that scores higher.

    Raises:
        PublishError: no checkpoint, or the package it would replace scores higher under the same protocol.
    """
    checkpoint = run / LATEST
    if not checkpoint.is_file():
        raise PublishError(f"{run} holds no {LATEST}: is it a run folder that `pose train` wrote?")
    state = load_checkpoint(checkpoint)
    config = TrainConfig.model_validate(state["config"])
    size = size or reached_size(config, state["samples"])
    joints = len(SKELETONS[config.skeleton])
    people = training_people(config, data)
    now = datetime.datetime.now(datetime.UTC)
    fields = {
        "name": config.name,
        "version": now.strftime("%Y.%m.%d") + f"-{state['samples'] // 1000}k",
        "architecture": Architecture(name=config.network, joints=joints, switches=config.switches),
        "input_size": size,
        "skeleton": config.skeleton,
        "codec": Codec(sigma=config.sigma_at(size), activation=config.activation),
        "padding": PADDING,
        "git_commit": git_commit(),
        "created": now.isoformat(timespec="seconds"),
        "licence": "AGPL-3.0-or-later; trained on pictures with mixed terms, see data",
        "data": [
            CardDataSet(
                name=entry.name, people=sum(p.set_index == i for p in people), weight=entry.weight,
                licence=entry.licence,
            )
            for i, entry in enumerate(config.data)
        ],
        "recipe": {
            "samples": state["samples"], "steps": state["step"], **config.model_dump(mode="json", exclude={"data"}),
        },
    }  # fmt: skip
    weights = state["average"]
    with tempfile.TemporaryDirectory() as scratch:
        trial = Path(scratch) / config.name
        write_package(trial, {**fields, "evaluation": []}, weights)
        report = validate_package(load_package(str(trial)), data)
    target = packages / config.name
    if not force:
        refuse_worse(target, report)
    write_package(target, {**fields, "evaluation": report}, weights)
    return target


def refuse_worse(target: Path, report: list[Evaluation]) -> None:
    """Compare with the package that stands at `target`, if one does.

    Raises:
        PublishError: it scores higher; says by how much.
    """
    if not (target / CARD).is_file():
        return
    try:
        old = read_card(target).evaluation
    except PackageError:
        return  # a damaged package has no claim to its place
    before, after = deciding_figure(old), deciding_figure(report)
    if before is not None and after is not None and after < before:
        data, metric = DECIDING
        raise PublishError(
            f"{metric} on {data} would fall from {before:.2f} to {after:.2f} ({after - before:+.2f}); "
            "--force publishes all the same"
        )


def deciding_figure(report: list[Evaluation]) -> float | None:
    """The figure that decides, with ground-truth boxes and flip test; None when it was not measured."""
    data, metric = DECIDING
    for entry in report:
        if entry.data == data and entry.flip_test and entry.boxes == "ground truth":
            return entry.metrics.get(metric)
    return None


def reached_size(config: TrainConfig, samples: int) -> tuple[int, int]:
    """The input size of the phase that sample number `samples` belongs to."""
    done = 0
    for phase in config.phases:
        done += phase.samples or 0
        if samples <= done:
            return phase.input_size
    return config.phases[-1].input_size


def parse_size(text: str) -> tuple[int, int]:
    """`256x192` -> (256, 192).

    Raises:
        PublishError: not of that form, or not divisible by 4.
    """
    height, _, width = text.partition("x")
    if not (height.isdigit() and width.isdigit()) or int(height) % STRIDE or int(width) % STRIDE:
        raise PublishError(f"size {text!r} must be HEIGHTxWIDTH, both divisible by {STRIDE}, such as 256x192")
    return int(height), int(width)
