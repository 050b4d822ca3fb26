"""`pose publish`: a run's averaged weights become a package, validated in the very form it will be served in."""

import datetime
import logging
import tempfile
from dataclasses import replace
from pathlib import Path

from model.card import Architecture, Calibration, Codec, Evaluation
from model.card import DataSet as CardDataSet
from model.codec import STRIDE
from model.crop import PADDING
from model.errors import PackageError, UserError
from model.package import CARD, load_package, write_package
from model.skeletons import SKELETONS, Skeleton
from training.calibration import ScoredJoints, fit_calibration
from training.checkpoint import LATEST, load_checkpoint
from training.config import DataSet, TrainConfig
from training.loop import training_people
from training.measuring import TorchEngine, find
from training.mixing import Mix
from training.provenance import git_commit
from training.validation import shared_sets

DECIDING = ("AP", "PCKh@0.5 mean", "PCK@0.2")  # the first that the run's validation set allows must not fall

log = logging.getLogger("pose.training")


class PublishError(UserError):
    """The run cannot be published; the message says why and what would."""


def publish_run(
    run: Path,
    data: Path,
    packages: Path,
    size: tuple[int, int] | None = None,
    *,
    mix: Mix | None = None,
    force: bool = False,
) -> Path:
    """Write `packages/<name of the run's configuration>`; returns its folder.

    Keypoint scores are calibrated on the run's own validation set, the figures are those of calibrated scores.

    Args:
        run: folder that `pose train` wrote.
        data: folder of the data sets.
        size: input (height, width) to serve at; by default the size the run ended with.
        mix: a package whose weights have a share in those that are published.
        force: replace a package that scores higher.

    Raises:
        MixError: see `Mix.into`.
        PublishError: no checkpoint, or the package it would replace scores higher under the same protocol.
    """
    checkpoint = run / LATEST
    if not checkpoint.is_file():
        raise PublishError(f"{run} holds no {LATEST}: is it a run folder that `pose train` wrote?")
    state = load_checkpoint(checkpoint)
    config = TrainConfig.model_validate(state["config"])
    size = size or reached_size(config, state["samples"])
    count = len(SKELETONS[config.skeleton])
    people = training_people(config, data)
    now = datetime.datetime.now(datetime.UTC)
    fields = {
        "name": config.name,
        "version": now.strftime("%Y.%m.%d") + f"-{state['samples'] // 1000}k",
        "architecture": Architecture(name=config.network, joints=count, switches=config.switches),
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
            "samples": state["samples"], "steps": state["step"], "started_from": state["started_from"],
            "mixed_with": str(mix) if mix else None, **config.model_dump(mode="json", exclude={"data"}),
        },
    }  # fmt: skip
    weights = mix.into(state["average"], SKELETONS[config.skeleton]) if mix else state["average"]
    target = packages / config.name
    with tempfile.TemporaryDirectory() as scratch:
        trial = Path(scratch) / config.name
        write_package(trial, {**fields, "evaluation": []}, weights)
        package = load_package(str(trial))
        engine = TorchEngine(package)
        chief = find(package, config.validation, data, engine)
        joints = ScoredJoints.of(chief.people, chief.raw, package.skeleton)
        calibration = fit_calibration(joints, package.skeleton, chief.entry.name, flip_test=chief.flip_test)
        log.info(_describe(calibration))
        rows = calibration.rows(package.skeleton) if calibration else ()
        package = replace(package, codec=replace(package.codec, calibration=rows))
        report = [chief.evaluate(package.codec, package.skeleton)]
        if not force:
            refuse_worse(target, report[0], package.skeleton, config.validation, data)
        others = [entry for entry in shared_sets(data, package.skeleton) if not same_labels(entry, config.validation)]
        found = [find(package, entry, data, engine) for entry in others]
        report += [one.evaluate(package.codec, package.skeleton) for one in found]
    write_package(target, {**fields, "evaluation": report, "calibration": calibration}, weights)
    return target


def refuse_worse(target: Path, new: Evaluation, skeleton: Skeleton, entry: DataSet, data: Path) -> None:
    """Compare with the package that stands at `target`, if one does, under the protocol of `new`.

    The old card's figure counts where it has one of this protocol; else the old package is measured now.

    Raises:
        PublishError: the old one scores higher, which is said in figures, or cannot be compared.
    """
    if not (target / CARD).is_file():
        return
    try:
        old = load_package(str(target))
    except PackageError as error:
        log.warning("what stands at %s has no claim to its place: %s", target, error)
        return
    if old.skeleton != skeleton:
        raise PublishError(
            f"the package at {target} has skeleton {old.skeleton.name}, this run {skeleton.name}: they cannot be "
            "compared; --force replaces it, another name in the configuration puts this one beside it"
        )
    same = next((one for one in old.card.evaluation if _protocol(one) == _protocol(new)), None)
    if same is None:
        log.info("%s holds no figure of this protocol: measuring %s", target / CARD, old.card.version)
        same = find(old, entry, data, TorchEngine(old)).evaluate(old.codec, old.skeleton)
    name = deciding_metric(new)
    before, after = same.metrics.get(name), new.metrics[name]
    where = f"{name} on {new.data} ({new.people} people, {new.boxes} boxes, flip test)"
    if before is None:
        raise PublishError(
            f"{where} is {after:.2f}; the package at {target} has no such figure, so the two cannot be compared: "
            "--force replaces it"
        )
    if after < before:
        raise PublishError(
            f"{where} would fall from {before:.2f} to {after:.2f} ({after - before:+.2f}); "
            "--force publishes all the same"
        )
    log.info("%s: %.2f, before %.2f (%+.2f)", where, after, before, after - before)


def deciding_metric(report: Evaluation) -> str:
    """AP where people are scored by OKS, else PCKh's mean, else PCK.

    Raises:
        PublishError: the labels allow none of them.
    """
    for name in DECIDING:
        if name in report.metrics:
            return name
    raise PublishError(
        f"{report.data} allows no figure to decide by ({', '.join(DECIDING)}): people need areas, heads or torsos"
    )


def same_labels(one: DataSet, other: DataSet) -> bool:
    """Whether two sets, whatever their names, are the same people."""
    return Path(one.annotations) == Path(other.annotations)


def _protocol(report: Evaluation) -> tuple[object, ...]:
    return report.data, report.pictures, report.people, report.boxes, report.flip_test


def _describe(calibration: Calibration | None) -> str:
    if calibration is None:
        return "scores stay as they are: too few labelled joints to calibrate by, or no gain on pictures held out"
    before, after = 100 * calibration.error_before, 100 * calibration.error_after
    return (
        f"scores calibrated on {calibration.joints} joints of {calibration.data}: expected error {before:.1f} -> "
        f"{after:.1f} points of OKS on pictures held out"
    )


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
