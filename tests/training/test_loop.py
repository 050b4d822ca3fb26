"""The loop on real pictures: it learns, stops and resumes exactly, and its weights become a package."""

import csv
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from model.package import load_package, read_card
from model.skeletons import COCO
from training.checkpoint import LATEST, TRUNK, load_checkpoint
from training.config import Augmentation, DataSet, Phase, TrainConfig
from training.distributed import Workers
from training.loader import Crops, loader
from training.loop import StoppedError, train
from training.people import keep_crops, read_people, read_picture
from training.publishing import PublishError, parse_size, publish_run
from training.trainer import NotFiniteError, Trainer


@pytest.fixture
def own_validation(monkeypatch: pytest.MonkeyPatch, data_set: DataSet) -> None:
    """`pose validate` and `pose publish` score on the small set."""
    monkeypatch.setattr("training.validation.VALIDATION_SETS", {"coco-val": data_set})


def weights(path: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = load_checkpoint(path)["network"]
    return state


def test_a_stopped_run_goes_on_bit_for_bit(
    data: Path, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(config, data, tmp_path / "whole")
    step = Trainer.train_batch

    def stop_after_five(self: Trainer, *arguments: object) -> float:
        loss: float = step(self, *arguments)  # type: ignore[arg-type]
        if self.step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_batch", stop_after_five)
        with pytest.raises(StoppedError, match="at sample 20"):
            train(config, data, tmp_path / "halves")
    train(config, data, tmp_path / "halves")
    whole, halves = weights(tmp_path / "whole" / LATEST), weights(tmp_path / "halves" / LATEST)
    assert all(torch.equal(whole[name], halves[name]) for name in whole)
    assert load_checkpoint(tmp_path / "whole" / TRUNK)["samples"] == 24
    sheets = sorted((tmp_path / "whole" / "pictures").iterdir())
    assert [sheet.name for sheet in sheets] == ["000000032.jpg", "000000048.jpg"]
    assert read_picture(sheets[0]).shape == (256, 8 * 192, 3)
    assert [row["size"] for row in csv.DictReader((tmp_path / "whole" / "results.csv").read_text().splitlines())] == [
        "64x48",
        "96x72",
    ]


def test_the_network_learns_what_it_is_shown(data: Path, config: TrainConfig, tmp_path: Path) -> None:
    still = Augmentation(flip=0, scale=0, rotation_chance=0, shift=0, half_body=0, photometric=0, dropout=0)
    longer = config.model_copy(
        update={"augmentation": still, "phases": [Phase(input_size=(64, 48), samples=480, batch=8)], "decay_from": 0.7}
    )
    figures = train(longer, data, tmp_path / "run")
    assert figures["PCK@0.2"] > 50  # a network that has learnt nothing gets below 15


def test_batches_depend_on_the_sample_number_alone(data: Path, data_set: DataSet) -> None:
    people = read_people(data_set, data, "coco17")
    crops = Crops(people, keep_crops(people, (64, 48)), (64, 48), COCO, Augmentation(), seed=3)
    chances = np.ones(len(people))
    alone = Workers(0, 1, torch.device("cpu"))
    early = iter(loader(crops, chances, 4, 0, 0, alone))
    next(early)
    late = next(iter(loader(crops, chances, 4, 4, 0, alone)))
    for mine, theirs in zip(next(early)[:3], late[:3], strict=True):
        assert torch.equal(mine, theirs)


def test_a_loss_that_is_no_number_names_the_pictures(
    data: Path, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.trainer.heatmap_loss", lambda *_: torch.tensor(float("nan"), requires_grad=True))
    with pytest.raises(NotFiniteError, match=r"loss is nan.* at sample 0.*(bus|zidane)\.jpg"):
        train(config, data, tmp_path / "run")


@pytest.mark.usefixtures("own_validation")
def test_a_run_becomes_a_package_that_is_scored_as_it_will_be_served(
    data: Path, config: TrainConfig, tmp_path: Path
) -> None:
    train(config, data, tmp_path / "run")
    folder = publish_run(tmp_path / "run", data, tmp_path / "packages")
    package = load_package(str(folder))
    card = package.card
    assert (card.name, card.input_size, card.codec.activation) == ("tiny", (96, 72), "softmax")
    assert card.recipe["samples"] == 48
    assert card.data[0].people == 5
    [entry] = card.evaluation
    assert (entry.people, entry.boxes, entry.flip_test) == (5, "ground truth", True)

    better = json.loads((folder / "card.json").read_text())
    better["evaluation"][0]["metrics"]["AP"] = entry.metrics["AP"] + 5
    (folder / "card.json").write_text(json.dumps(better))
    with pytest.raises(PublishError, match=r"would fall .*-5\.00"):
        publish_run(tmp_path / "run", data, tmp_path / "packages")
    assert read_card(folder).evaluation[0].metrics["AP"] == entry.metrics["AP"] + 5
    publish_run(tmp_path / "run", data, tmp_path / "packages", (64, 48), force=True)
    assert read_card(folder).input_size == (64, 48)


def test_an_empty_folder_is_no_run(data: Path, tmp_path: Path) -> None:
    with pytest.raises(PublishError, match="is it a run folder"):
        publish_run(tmp_path, data, tmp_path / "packages")


@pytest.mark.parametrize("text", ["256", "256x191", "x", "axb", "256x192x3"])
def test_sizes_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(PublishError, match="HEIGHTxWIDTH"):
        parse_size(text)
    assert parse_size("256x192") == (256, 192)
