"""Batches of augmented crops. What is drawn depends on the seed and the sample's number alone, so a run that is
stopped anywhere goes on with the very crops it would have seen."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from model.skeletons import Skeleton
from training.augment import sample
from training.config import Augmentation, ConfigError, TrainConfig
from training.distributed import Workers
from training.people import KeptCrop, Person

Batch = tuple[Tensor, Tensor, Tensor, list[int]]


class Crops(Dataset[tuple[np.ndarray, np.ndarray, np.ndarray, int]]):
    """`crops[person, number]`: the person's crop, augmented by sample `number`'s own random numbers."""

    def __init__(
        self,
        people: Sequence[Person],
        kept: Sequence[KeptCrop],
        size: tuple[int, int],
        skeleton: Skeleton,
        augmentation: Augmentation,
        seed: int,
    ) -> None:
        self.people, self.kept, self.size = people, kept, size
        self.skeleton, self.augmentation, self.seed = skeleton, augmentation, seed

    def __len__(self) -> int:
        return len(self.people)

    def __getitem__(self, key: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
        person, number = key
        rng = np.random.default_rng((self.seed, number))
        crop, keypoints, weights = sample(
            self.people[person], self.kept[person], self.size, self.skeleton, self.augmentation, rng
        )
        return crop, keypoints, weights, person


class Draw(Sampler[list[tuple[int, int]]]):
    """Endless batches of (person, sample number) from sample `start` on; one process's part of each batch.

    Samples go through the people in passes as long as there are people, in an order of each pass's own (`shuffle`).
    """

    def __init__(self, weights: np.ndarray, batch: int, seed: int, start: int, workers: Workers) -> None:
        self.weights, self.batch, self.seed, self.start, self.workers = weights, batch, seed, start, workers

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        start, people = self.start, len(self.weights)
        number, order = -1, np.empty(0, np.int64)
        share = self.batch // self.workers.size
        while True:
            mine = []
            for sample_number in range(start, start + self.batch):
                if sample_number // people != number:
                    number = sample_number // people
                    order = shuffle(self.weights, self.seed, number)
                mine.append((int(order[sample_number % people]), sample_number))
            yield mine[self.workers.rank * share : (self.workers.rank + 1) * share]
            start += self.batch


def draw_weights(people: Sequence[Person], config: TrainConfig) -> np.ndarray:
    """(N,) float64: how often each of the `people` is drawn, relative to the others; its data set's weight."""
    return np.array([config.data[person.set_index].weight for person in people])


def shuffle(weights: np.ndarray, seed: int, number: int) -> np.ndarray:
    """The people of pass `number`, in random order: as many as there are, each `weight / mean weight` times.

    Where that is no whole number, a person comes once more in as many passes as the fraction says (systematic
    sampling); people of equal weights come exactly once.
    """
    random = np.random.default_rng((seed, number, 1))
    shares = np.cumsum(weights / weights.sum() * len(weights))
    shares[-1] = len(weights)
    marks = np.floor(np.round(shares, 9) + random.random()).astype(np.int64)
    return random.permutation(np.repeat(np.arange(len(weights)), np.diff(marks, prepend=0)))


def collate(items: list[tuple[np.ndarray, np.ndarray, np.ndarray, int]]) -> Batch:
    """crops (N, H, W, 3) uint8, keypoints (N, K, 2) and weights (N, K) float32, indices of the people."""
    crops, keypoints, weights, people = zip(*items, strict=True)
    stacked = (torch.from_numpy(np.stack(arrays)) for arrays in (crops, keypoints, weights))
    return (*stacked, list(people))  # type: ignore[return-value]


def loader(
    crops: Crops, weights: np.ndarray, batch: int, start: int, processes: int, workers: Workers
) -> DataLoader[Batch]:
    """Batches from sample number `start` on, without end; with `processes` of its own to load them, if any.

    Raises:
        ConfigError: the batch cannot be shared out among the training processes.
    """
    if batch % workers.size or batch // workers.size < 2:
        raise ConfigError(f"batch {batch} cannot be shared by {workers.size} processes, with at least 2 crops for each")
    draw = Draw(weights, batch, crops.seed, start, workers)
    pinned = workers.device.type == "cuda"
    return DataLoader(crops, batch_sampler=draw, collate_fn=collate, num_workers=processes, pin_memory=pinned)  # type: ignore[arg-type]
