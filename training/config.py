"""Training configuration: YAML checked by pydantic. Every default stands here, with its reason where one is needed."""

import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from model.codec import Activation, default_sigma
from model.errors import UserError
from model.networks import NETWORKS
from model.skeletons import SKELETONS

CONFIGS = Path(__file__).parent / "configs"


class ConfigError(UserError):
    """A configuration file cannot be used; the message names the key and the way out."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataSet(_Section):
    """One set of people, mapped to the trained skeleton by joint name."""

    name: str = Field(description="shown in logs and in the package's card")
    annotations: str = Field(
        description="COCO-format json, MPII's .mat, HRNet's MPII json or a folder made by `pose data pack`, "
        "relative to the data folder"
    )
    images: str = Field("", description="picture folder, relative to the data folder; a pack needs none")
    licence: str = Field(description="goes into the card of the weights")
    weight: float = Field(1.0, gt=0, description="how often one of its people is drawn, relative to the other sets")
    extra_joints: str | None = Field(
        None, description="json {annotation id: [[x, y, score], ...]} for the set's first joints, where unlabelled"
    )
    confidence: bool = Field(
        True, description="joints are weighed by the file's `confidence`; without, all that are labelled count in full"
    )
    derive: dict[str, tuple[str, str]] = Field(
        {}, description="joints the set lacks, each taken as the middle of two it has: {pelvis: [left_hip, right_hip]}"
    )


class Augmentation(_Section):
    """Chances and ranges; HRNet's where it has them."""

    flip: float = Field(0.5, ge=0, le=1)
    scale: float = Field(0.35, ge=0, lt=1, description="region scaled by 1 +- this")
    rotation: float = Field(45.0, ge=0, le=180, description="degrees, +-")
    rotation_chance: float = Field(0.6, ge=0, le=1)
    shift: float = Field(0.08, ge=0, le=0.5, description="of the region's extent, +-")
    half_body: float = Field(0.3, ge=0, le=1)
    cut: float = Field(
        0.0, ge=0, le=1, description="chance that one side of the box is cut off, where no half body is shown"
    )
    photometric: float = Field(0.5, ge=0, le=1, description="chance of other colours, contrast and brightness")
    blur: float = Field(0.1, ge=0, le=1, description="chance of a Gaussian, median or motion blur")
    dropout: float = Field(0.3, ge=0, le=1, description="chance of one to three grey or noisy boxes over the person")


class Phase(_Section):
    """A stretch of training at one input size, `samples` crops or `epochs` passes over the people long."""

    input_size: tuple[int, int] = Field(description="crop height, width in pixels; divisible by 4")
    samples: int | None = Field(None, gt=0, description="how many crops this phase shows")
    epochs: float | None = Field(None, gt=0, description="the same as passes over the training people")
    batch: int = Field(64, gt=1, description="crops of one optimiser step, over all processes")
    accumulate: int = Field(1, ge=1, description="parts a step is computed in, for batches larger than the memory")
    augmentation: Augmentation | None = Field(None, description="in place of the run's own")

    @model_validator(mode="after")
    def _length_is_given_once(self) -> "Phase":
        if (self.samples is None) == (self.epochs is None):
            raise ValueError("give either samples or epochs")
        if self.batch // self.accumulate < 2 or self.batch % self.accumulate:
            raise ValueError(
                f"batch {self.batch} cannot be computed in {self.accumulate} equal parts of 2 crops or more"
            )
        return self


class Distillation(_Section):
    """A teacher beside the labels."""

    teacher: str = Field(description="weight package: a bundled name or a folder")
    weight: float = Field(0.5, gt=0, le=1, description="the teacher's share of the loss")


class TrainConfig(_Section):
    """Everything a run depends on beside the data itself."""

    name: str = Field(pattern=r"^[a-z0-9_]+$", description="of the run, and of the package it publishes")
    network: str = "sdhrnet_w32"
    switches: dict[str, bool | int] = {}
    skeleton: str = "coco17"
    init: str | None = Field(
        None,
        description="weight package to start from (a bundled name or a folder), as wide as the network or twice as "
        "wide; joints are matched by name",
    )
    data: list[DataSet] = Field(min_length=1)
    validation: DataSet
    min_joints: int = Field(5, ge=1, description="people with fewer labelled joints are left out")
    min_height: float = Field(50.0, ge=0, description="pixels; smaller people are left out")
    phases: list[Phase] = Field(min_length=1)
    loss: Literal["cross_entropy", "mse"] = "cross_entropy"
    hard_joints: int = Field(0, ge=0, description="only so many joints of a person count, the worst; 0 is all (OHKM)")
    distillation: Distillation | None = None
    sigma: float = Field(2.0, gt=0, description="of the target Gaussian at 64 heatmap rows; scales with the heatmap")
    learning_rate: float = Field(1.5e-3, gt=0)
    weight_decay: float = Field(0.05, ge=0, description="AdamW's; with 0 it is Adam")
    warmup_samples: int = Field(12_800, ge=0)
    schedule: Literal["cosine", "step"] = "cosine"
    decay_from: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="cosine: share of the run after which the rate falls to zero; before, it is constant",
    )
    decay_steps: list[float] = Field([], description="step: shares of the run at which the rate falls to a tenth")
    clip: float = Field(5.0, gt=0, description="largest gradient norm")
    ema: float = Field(0.998, ge=0, lt=1, description="decay of the averaged weights per step; 0 does not average")
    precision: Literal["auto", "bf16", "fp16", "float32"] = Field(
        "auto", description="auto: bf16 where the hardware has it, else float32; fp16 is for older GPUs"
    )
    augmentation: Augmentation = Augmentation()
    seed: int = 0
    sync_batch_norm: bool = Field(
        True, description="several processes take the batch's statistics together; without, each its own share's"
    )
    threads: int = Field(0, ge=0, description="CPU threads of the network; 0 leaves it to PyTorch")
    workers: int = Field(0, ge=0, description="loader processes; 0 loads in the training process")
    validate_every: int = Field(20_000, gt=0, description="samples")
    checkpoint_minutes: float = Field(3.0, ge=0, description="0 saves after every step")

    @field_validator("network")
    @classmethod
    def _known_network(cls, value: str) -> str:
        return _one_of(value, NETWORKS)

    @field_validator("skeleton")
    @classmethod
    def _known_skeleton(cls, value: str) -> str:
        return _one_of(value, SKELETONS)

    @model_validator(mode="after")
    def _sizes_fit(self) -> "TrainConfig":
        for phase in self.phases:
            if any(side % 4 or side < 32 for side in phase.input_size):
                raise ValueError(f"input size {phase.input_size} must be at least 32 and divisible by 4")
        if (self.schedule == "step") != bool(self.decay_steps):
            raise ValueError("schedule step needs decay_steps, and no other schedule takes them")
        return self

    def resolve(self, people: int) -> "TrainConfig":
        """The same run with every phase's length in samples, for a training set of so many people."""
        phases = [
            phase if phase.epochs is None else phase.model_copy(
                update={"samples": max(1, round(phase.epochs * people)), "epochs": None}
            )
            for phase in self.phases
        ]  # fmt: skip
        return self.model_copy(update={"phases": phases})

    @property
    def activation(self) -> Activation:
        """What turns the network's output into heatmaps, given the loss it was trained by."""
        return "softmax" if self.loss == "cross_entropy" else "identity"

    @property
    def samples(self) -> int:
        """Crops shown in the whole run; see `resolve` for phases in epochs."""
        return sum(phase.samples or 0 for phase in self.phases)

    @property
    def largest_size(self) -> tuple[int, int]:
        """(height, width) of the phase with the tallest crops: what is kept of a picture must do for it."""
        return max((phase.input_size for phase in self.phases), key=lambda size: size[0])

    def sigma_at(self, input_size: tuple[int, int]) -> float:
        """The target's standard deviation in heatmap pixels for crops of `input_size`."""
        return self.sigma / 2 * default_sigma(input_size)


def _one_of(value: str, known: Any) -> str:
    if value not in known:
        raise ValueError(f"unknown name {value!r}; known: {', '.join(known)}")
    return value


def shipped_configs() -> list[str]:
    """Names of the configurations that come with the code."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def load_config(name_or_path: str, changes: Sequence[str] = ()) -> TrainConfig:
    """Read a shipped configuration by name, or a YAML file.

    One that says `extends: NAME` has the keys of that one (shipped, or a file beside it) where it has none of its own.

    Args:
        changes: `key=value`, the value as YAML, the key with dots into sections and lists:
            `augmentation.flip=0`, `phases.0.samples=1000`.

    Raises:
        ConfigError: no such file, no YAML, an unknown key (named with its nearest valid one) or a bad value.
    """
    path = _find(name_or_path, Path())
    fields = _read(path, ())
    for change in changes:
        _change(fields, change)
    try:
        return TrainConfig.model_validate(fields)
    except ValidationError as error:
        raise ConfigError(f"{path}: " + "; ".join(_explain(dict(e)) for e in error.errors())) from None


def _find(name_or_path: str, folder: Path) -> Path:
    path = CONFIGS / f"{name_or_path}.yaml"
    if not path.is_file():
        path = folder / name_or_path
    if not path.is_file():
        raise ConfigError(
            f"no configuration {name_or_path!r}: neither a file nor one of {', '.join(shipped_configs())}"
        )
    return path


def _read(path: Path, extending: tuple[Path, ...]) -> dict[str, Any]:
    """The keys of a file, and of those that it extends; `extending` are the files on the way here."""
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no YAML: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold keys and values")
    fields: dict[str, Any] = content
    base, changes = fields.pop("extends", None), fields.pop("set", [])
    if not isinstance(changes, list):
        raise ConfigError(f"{path}: set must be a list of key=value, such as [data.0.weight=2]")
    if base is not None:
        extending = (*extending, path.resolve())
        found = _find(str(base), path.parent)
        if found.resolve() in extending:
            raise ConfigError(f"{path}: extends {base!r}, which in the end extends {path.name} itself")
        fields = _read(found, extending) | fields
    for change in changes:
        _change(fields, str(change))
    return fields


def _change(fields: dict[str, Any], change: str) -> None:
    """Apply one `key=value` in place; whether the key is a valid one is found out when all is checked."""
    key, found, text = change.partition("=")
    if not found or not key:
        raise ConfigError(f"--set {change!r} must be key=value, such as learning_rate=0.001 or phases.0.samples=1000")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {change!r}: the value is no YAML: {error}") from None
    place: Any = fields
    *sections, last = (int(part) if part.isdigit() else part for part in key.split("."))
    try:
        for section in sections:
            place = place.setdefault(section, {}) if isinstance(place, dict) else place[section]
        place[last] = value
    except (TypeError, IndexError, KeyError, AttributeError):
        raise ConfigError(f"--set {change!r}: the configuration has no place {key!r}") from None


def _explain(error: dict[str, Any]) -> str:
    place = ".".join(str(part) for part in error["loc"])
    if error["type"] != "extra_forbidden":
        return f"{place or 'the file'}: {error['msg']}"
    models = (TrainConfig, DataSet, Phase, Augmentation, Distillation)
    known = [key for model in models for key in model.model_fields]
    near = difflib.get_close_matches(str(error["loc"][-1]), known, 1)
    return f"unknown key {place!r}" + (f", did you mean {near[0]!r}?" if near else "")


def data_folder() -> Path:
    """Where data sets are: `POSE_DATA`, by default `../shared/data`.

    Raises:
        ConfigError: there is no such folder.
    """
    folder = Path(os.environ.get("POSE_DATA", "../shared/data"))
    if not folder.is_dir():
        raise ConfigError(f"no data folder {folder}: set POSE_DATA to the folder that holds the data sets")
    return folder


def runs_folder() -> Path:
    """Where runs are written: `POSE_RUNS`, by default `runs`."""
    return Path(os.environ.get("POSE_RUNS", "runs"))
