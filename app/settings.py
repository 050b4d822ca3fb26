"""Every limit and default of the service, in one place: environment variables `POSE_<NAME>`.

An unknown or malformed `POSE_*` variable is an error that names it, so that a typing slip is never a silent default.
"""

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from model.errors import UserError

PREFIX = "POSE_"
NOT_OURS = {"POSE_DATA", "POSE_RUNS"}  # folders of data and of training runs: read by training and tests


class SettingsError(UserError):
    """The environment holds an unknown or malformed setting; the message has one line per finding."""


class Settings(BaseSettings):
    """What a server is started with; read once, then fixed."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_file=None, extra="forbid", frozen=True)

    host: str = Field(
        default="127.0.0.1", description="Address to listen on; 0.0.0.0 opens the service to the network."
    )
    port: int = Field(default=8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    model: str = Field(default="sdhrnet_w32_coco", description="Pose package: a bundled name or a folder.")
    watch: bool = Field(
        default=False,
        description="Load the pose package anew when its folder changes, without a restart; SIGHUP does so always.",
    )
    detector: str = Field(
        default="bundled",
        description="Person detector: `bundled`, a package's name or folder, the path of an ultralytics checkpoint (a "
        "pickle: open only files you trust), or `none` (the whole picture is one person).",
    )
    device: Literal["auto", "cuda", "cpu"] = Field(
        default="auto", description="Where networks run; `auto` takes a GPU if any."
    )
    engine: Literal["auto", "openvino", "torch"] = Field(
        default="auto", description="What runs them; `auto` is openvino on the CPU and torch on a GPU."
    )
    precision: Literal["auto", "f16", "bf16", "f32", "int8"] = Field(
        default="auto",
        description="Arithmetic inside the networks; `auto` is f16 on a GPU, and bf16 on a CPU that has it. Heads stay "
        "f32. `int8` "
        "is the pose network's, on openvino only, and needs a package with int8 ranges (`pose quantise`).",
    )
    threads: int = Field(
        default=0,
        ge=0,
        le=1024,
        validate_default=True,
        description="CPU threads of the networks. OpenVINO's work on a batch each while there is enough to do, and "
        "together on a lone picture. 0 takes one per core that this process may use (its affinity and its container's "
        "CPU quota).",
    )
    decode_threads: int = Field(
        default=0,
        ge=0,
        le=256,
        validate_default=True,
        description="Threads that decode, cut and encode pictures, beside those of the networks; 0 takes one for "
        "every two cores, at most 16.",
    )
    cache: Path | None = Field(
        default=None,
        description="Folder for converted networks, so that later starts are quick; default `pose` in the user's cache "
        "folder. One that cannot be written costs time at the start, nothing else.",
    )
    max_bytes: int = Field(
        default=20 * 2**20,
        ge=1,
        description="Most bytes of the body of a request with one picture, and of each picture of `/pose/batch`; more "
        "is answered 413.",
    )
    max_pictures: int = Field(
        default=32, ge=1, le=1024, description="Most pictures of one request to `/pose/batch`; more is answered 413."
    )
    max_pictures_bytes: int = Field(
        default=64 * 2**20, ge=1, description="Most bytes of the body of such a request; more is answered 413."
    )
    max_pixels: int = Field(
        default=40_000_000,
        ge=1,
        description="Most pixels of a picture, read from its header before decoding; more is 413.",
    )
    max_persons: int = Field(
        default=50, ge=1, le=1000, description="Most persons of one picture: default and upper bound of the option."
    )
    box_score: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Default of the option: least score of a detected box. Unset: its card's, or 0.3.",
    )
    keypoint_score: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="Default of the option: least score of a keypoint that counts and is drawn.",
    )
    max_batch: int = Field(
        default=8,
        ge=1,
        le=1024,
        description="Most crops, or pictures, that share one run of a network; on OpenVINO two at most, more are "
        "no faster.",
    )
    queue_size: int = Field(
        default=32,
        ge=1,
        description="Most pictures being worked on or waiting for it; one more is answered 503. Those of `/pose/batch` "
        "wait for a place each instead, and take at most half of them. Bounds the memory: queue_size x max_pixels x 3 "
        "bytes at the very most.",
    )
    max_connections: int = Field(
        default=256,
        ge=1,
        description="Most requests in progress, those still sending their body included; one more is 503.",
    )
    request_timeout: float = Field(
        default=30.0,
        gt=0,
        le=3600,
        description="Seconds from a body's arrival to its answer, else 504; `X-Request-Timeout` lowers it.",
    )
    receive_timeout: float = Field(
        default=10.0, gt=0, le=3600, description="Seconds a body may take to arrive, else 408."
    )
    drain_timeout: float = Field(
        default=30.0, ge=0, le=3600, description="Seconds that accepted requests get to finish after SIGTERM."
    )
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        default=(),
        description="Keys, separated by commas, one of which every request must bring; none: no key is asked for.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least level of what is logged."
    )

    @field_validator("api_keys", mode="before")
    @classmethod
    def _split_keys(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(key.strip() for key in value.split(",") if key.strip())
        return value

    @field_validator("threads")
    @classmethod
    def _fit_threads(cls, value: int) -> int:
        return value or count_cores()

    @field_validator("decode_threads")
    @classmethod
    def _fit_decode_threads(cls, value: int) -> int:
        # decoding is a tenth of the networks' arithmetic; more threads would only take cores from a run under way
        return value or min(16, max(1, count_cores() // 2))

    @property
    def cache_folder(self) -> Path:
        """The folder for converted networks; it need not exist."""
        if self.cache is not None:
            return self.cache
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pose"


def count_cores(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Cores this process may use: by its affinity, and by its container's quota (cgroup v2: `max` or microseconds of
    CPU time, then those of the period) where there is one."""
    cores = len(os.sched_getaffinity(0))
    try:
        most, period = quota.read_text().split()
        return max(1, min(cores, int(most) // int(period)))
    except (OSError, ValueError):
        return cores


def load_settings(environment: Mapping[str, str] | None = None) -> Settings:
    """Settings from environment variables, those of this process by default.

    Raises:
        SettingsError: an unknown `POSE_*` variable (with the nearest known one), or a malformed value.
    """
    variables = os.environ if environment is None else environment
    known = {PREFIX + name.upper(): name for name in Settings.model_fields}
    given = {key: value for key, value in variables.items() if key.startswith(PREFIX) and key not in NOT_OURS}
    findings = [_unknown(key, list(known)) for key in sorted(given.keys() - known.keys())]
    try:
        settings = Settings.model_validate({known[key]: value for key, value in given.items() if key in known})
    except ValidationError as error:
        for found in error.errors():
            name = PREFIX + str(found["loc"][0]).upper()
            findings.append(f"{name}={given.get(name, '')!r}: {found['msg']}")
    if findings:
        raise SettingsError("\n".join(findings))
    return settings


def _unknown(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f"{name} is no setting" + (f"; did you mean {near[0]}?" if near else f"; known: {', '.join(known)}")
