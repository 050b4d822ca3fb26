"""Started by `torchrun` from a test: six steps of a configuration; the first process prints each step's loss, and how
many batch norms take their statistics over all processes."""

import json
import logging
import sys
from pathlib import Path

import numpy as np
import torch

from model.codec import HeatmapCodec
from training.config import data_folder, load_config
from training.distributed import SharedBatchNorm, join_workers
from training.loader import Crops, loader
from training.loop import training_people
from training.people import keep_crops
from training.trainer import Trainer


def main() -> None:
    logging.basicConfig(level=logging.INFO)
    config = load_config(sys.argv[1], sys.argv[2:])
    [phase] = config.phases
    with join_workers() as workers:
        trainer = Trainer(config, Path.cwd(), workers)
        people = training_people(config, data_folder())
        kept = keep_crops(people, phase.input_size)
        crops = Crops(people, kept, phase.input_size, trainer.skeleton, config.augmentation, config.seed)
        codec = HeatmapCodec(phase.input_size, config.sigma_at(phase.input_size), config.activation)
        batches = iter(loader(crops, np.ones(len(people)), phase.batch, 0, 0, workers))
        losses = [trainer.train_batch(next(batches), phase, codec, people) for _ in range(6)]
        for parameter in trainer.network.parameters():
            assert torch.equal(workers.total(parameter) / workers.size, parameter), "the processes' weights differ"
        if workers.first:
            shared = sum(isinstance(module, SharedBatchNorm) for module in trainer.network.modules())
            print(json.dumps([losses, shared]))  # noqa: T201


if __name__ == "__main__":
    main()
