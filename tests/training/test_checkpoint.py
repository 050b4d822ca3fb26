"""Checkpoints stay whole: a full disk, a damaged file, another network."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from training.checkpoint import LATEST, CheckpointError, load_checkpoint, save_checkpoint
from training.config import ConfigError, TrainConfig
from training.distributed import Workers
from training.trainer import Trainer

ALONE = Workers(0, 1, torch.device("cpu"))


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes: what a full disk does to a writer."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_last_checkpoint_whole(tmp_path: Path) -> None:
    path = tmp_path / LATEST
    save_checkpoint(path, {"step": 1})
    with largest_file(100_000), pytest.raises(CheckpointError, match=r"cannot be written \(\d+ MB free.*make room"):
        save_checkpoint(path, {"step": 2, "network": torch.zeros(1_000_000)})
    assert load_checkpoint(path) == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 and no more"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / LATEST
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(path)


def test_a_checkpoint_of_another_network_is_refused(config: TrainConfig, tmp_path: Path) -> None:
    Trainer(config, tmp_path, ALONE).save(LATEST)
    other = config.model_copy(update={"switches": {"dasp": False}})
    with pytest.raises(ConfigError, match="trained with switches"):
        Trainer(other, tmp_path, ALONE).load(tmp_path / LATEST)
