"""Batches of augmented crops. What is drawn depends on the seed and the sample's number alone, so a run that is
stopped anywhere goes on with the very crops it would have seen."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from model.skeletons import Skeleton
from training.augment import sample
from training.config import Augmentation
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
    """Endless batches of (person, sample number), people drawn by weight, from sample `start` on."""

    def __init__(self, weights: np.ndarray, batch: int, seed: int, start: int) -> None:
        self.cumulative = np.cumsum(weights / weights.sum())
        self.batch, self.seed, self.start = batch, seed, start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        start = self.start
        while True:
            chances = np.random.default_rng((self.seed, start, 1)).random(self.batch)
            people = np.searchsorted(self.cumulative, chances).clip(max=len(self.cumulative) - 1)
            yield [(int(person), start + i) for i, person in enumerate(people)]
            start += self.batch


def collate(items: list[tuple[np.ndarray, np.ndarray, np.ndarray, int]]) -> Batch:
    """crops (N, H, W, 3) uint8, keypoints (N, K, 2) and weights (N, K) float32, indices of the people."""
    crops, keypoints, weights, people = zip(*items, strict=True)
    stacked = (torch.from_numpy(np.stack(arrays)) for arrays in (crops, keypoints, weights))
    return (*stacked, list(people))  # type: ignore[return-value]


def loader(crops: Crops, weights: np.ndarray, batch: int, start: int, workers: int) -> DataLoader[Batch]:
    """Batches from sample number `start` on, without end."""
    draw = Draw(weights, batch, crops.seed, start)
    return DataLoader(crops, batch_sampler=draw, collate_fn=collate, num_workers=workers, pin_memory=False)  # type: ignore[arg-type]
