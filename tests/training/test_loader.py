"""What a pass over the people shows, and how processes share it."""

import numpy as np
import pytest
import torch

from training.config import Augmentation, ConfigError
from training.distributed import Workers
from training.loader import Crops, Draw, loader, shuffle

CPU = torch.device("cpu")


def test_people_of_equal_weights_come_once_in_every_pass_in_another_order() -> None:
    first, second = (shuffle(np.full(50, 0.3), seed=1, number=number) for number in (0, 1))
    assert sorted(first) == sorted(second) == list(range(50))
    assert list(first) != list(second)


def test_weights_are_kept_over_many_passes() -> None:
    weights = np.array([2.0, 1.0, 1.0, 0.6, 0.4])
    passes = [shuffle(weights, seed=1, number=number) for number in range(400)]
    assert all(len(order) == 5 for order in passes)
    assert np.bincount(np.concatenate(passes)) / 400 == pytest.approx(weights, abs=0.08)


def test_processes_share_the_batch_of_one() -> None:
    weights = np.ones(7)
    [whole] = [next(iter(Draw(weights, 4, 0, 12, Workers(0, 1, CPU))))]
    halves = [next(iter(Draw(weights, 4, 0, 12, Workers(rank, 2, CPU)))) for rank in (0, 1)]
    assert halves[0] + halves[1] == whole
    assert [number for _, number in whole] == [12, 13, 14, 15]


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    crops = Crops([], [], (64, 48), None, Augmentation(), 0)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="batch 6 cannot be shared by 4 processes"):
        loader(crops, np.ones(8), 6, 0, 0, Workers(0, 4, CPU))
