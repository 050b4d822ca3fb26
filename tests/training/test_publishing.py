"""`pose publish`: what is stored, and what may not be replaced."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from model.card import Calibration
from model.networks import build
from model.package import CARD, WEIGHTS, load_package, read_card, write_package
from model.skeletons import COCO, LSP
from training.checkpoint import LATEST, load_checkpoint, save_checkpoint
from training.config import DataSet, TrainConfig
from training.mixing import Mix, MixError
from training.publishing import PublishError, deciding_metric, publish_run, refuse_worse

NO_NETWORK = "the figure on the card must do"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data_set: DataSet) -> Path:
    """A run that has learnt nothing."""
    config = TrainConfig.model_validate(
        {
            "name": "tiny", "network": "sdhrnet_w16", "data": [data_set], "validation": data_set,
            "phases": [{"input_size": (64, 48), "samples": 48, "batch": 4}],
        }
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    state = build("sdhrnet_w16", 17).state_dict()
    saved = {
        "average": state,
        "samples": 48,
        "step": 12,
        "started_from": None,
        "config": config.model_dump(mode="json"),
    }
    save_checkpoint(folder / LATEST, saved)
    return folder


@pytest.fixture(scope="module")
def published(run: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's package, published where no shared set is there; leave it as it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.validation.VALIDATION_SETS", {})
        return publish_run(run, data, tmp_path_factory.mktemp("packages"))


@pytest.fixture
def standing(published: Path, tmp_path: Path) -> Path:
    """A copy of it, to change."""
    return Path(shutil.copytree(published, tmp_path / "tiny"))


def change_card(folder: Path, **fields: Any) -> None:
    card = json.loads((folder / CARD).read_text())
    (folder / CARD).write_text(json.dumps({**card, **fields}))


def test_the_card_holds_intervals_and_a_calibration_that_is_served_and_every_set_once(
    run: Path, data: Path, data_set: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibration = Calibration(
        method="isotonic", table={joint: [0.0, 0.5] for joint in COCO.joints}, data="people", flip_test=True,
        pictures=2, joints=85, bins=15, error_before=0.2, error_after=0.1,
    )  # fmt: skip
    monkeypatch.setattr("training.publishing.fit_calibration", lambda *_, **__: calibration)
    (data / "other.json").write_bytes((data / "people.json").read_bytes())
    sets = {
        "coco-val": data_set.model_copy(update={"name": "coco-val"}),  # the run's own people, under another name
        "lspet-val": data_set.model_copy(update={"name": "lspet-val", "annotations": "other.json"}),
    }
    monkeypatch.setattr("training.validation.VALIDATION_SETS", sets)
    package = load_package(str(publish_run(run, data, tmp_path)))
    assert package.card.calibration == calibration
    assert package.codec.calibrate(torch.full((1, 17), 0.8)).tolist() == [[pytest.approx(0.4)] * 17]
    assert [entry.data for entry in package.card.evaluation] == ["people", "lspet-val"]
    for entry in package.card.evaluation:
        low, high = entry.intervals["PCK@0.2"]
        assert low <= entry.metrics["PCK@0.2"] <= high


def test_too_few_labels_calibrate_nothing(published: Path) -> None:
    assert read_card(published).calibration is None  # 85 joints
    assert [entry.data for entry in read_card(published).evaluation] == ["people"]


def test_a_package_without_a_figure_of_the_protocol_is_measured_before_it_is_replaced(
    standing: Path, data: Path, data_set: DataSet, caplog: pytest.LogCaptureFixture
) -> None:
    [figure] = read_card(standing).evaluation
    change_card(standing, evaluation=[])
    with caplog.at_level(logging.INFO, "pose.training"):
        refuse_worse(standing, figure, COCO, data_set, data)
    assert "holds no figure of this protocol: measuring" in caplog.text
    value = figure.metrics["AP"]
    assert f"{value:.2f}, before {value:.2f} (+0.00)" in caplog.text


def test_weights_between_a_run_and_a_package_are_published(
    run: Path, standing: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.validation.VALIDATION_SETS", {})
    mine, card = load_checkpoint(run / LATEST)["average"], read_card(standing)
    theirs = {name: value + 1 if value.is_floating_point() else value for name, value in mine.items()}
    write_package(standing, card.model_dump(exclude={"sha256"}), theirs)
    partner = load_package(str(standing))
    package = load_package(str(publish_run(run, data, tmp_path / "mixed", mix=Mix(partner, 0.25))))
    for name, value in package.network.state_dict().items():
        moved = 0.25 if value.is_floating_point() else 0
        torch.testing.assert_close(value, mine[name] + moved, rtol=2e-3, atol=2e-3)  # float16 on the disk
    assert package.card.recipe["mixed_with"] == f"0.25 of tiny {card.version} ({partner.card.sha256[:12]})"


def test_weights_that_do_not_go_together_are_not_mixed(published: Path) -> None:
    package = load_package(str(published))
    assert Mix.parse(str(published), "0.35").share == 0.35
    for share in ("0", "1", "-0.5", "nan", "half"):
        with pytest.raises(MixError, match=f"between 0 and 1.*{share}"):
            Mix.parse(str(published), share)
    with pytest.raises(MixError, match=r"tiny is a sdhrnet_w16, another network: \d+ layers"):
        Mix(package, 0.5).into(build("sdhrnet_w32", 17).state_dict(), COCO)
    with pytest.raises(MixError, match="tiny has skeleton coco17, the run lsp14"):
        Mix(package, 0.5).into(package.network.state_dict(), LSP)


def test_a_lower_figure_is_refused_and_the_difference_said(standing: Path, data: Path, data_set: DataSet) -> None:
    [figure] = read_card(standing).evaluation
    figure = figure.model_copy(update={"metrics": {"AP": 20.0}})
    change_card(standing, evaluation=[{**figure.model_dump(), "metrics": {"AP": 25.0}}])
    message = r"AP on people \(5 people, ground truth boxes, flip test\) would fall from 25\.00 to 20\.00 \(-5\.00\)"
    with pytest.raises(PublishError, match=message):
        refuse_worse(standing, figure, COCO, data_set, data)
    change_card(standing, evaluation=[{**figure.model_dump(), "metrics": {"AP": 20.0}}])
    refuse_worse(standing, figure, COCO, data_set, data)  # as good is good enough


@pytest.mark.parametrize("change", [{"data": "another"}, {"people": 6}, {"boxes": "a detector"}, {"flip_test": False}])
def test_only_a_figure_of_the_same_protocol_is_compared(
    standing: Path, data: Path, data_set: DataSet, change: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(*_: object) -> None:
        raise AssertionError(NO_NETWORK)

    monkeypatch.setattr("training.publishing.find", measure)
    figure = read_card(standing).evaluation[0].model_copy(update={"metrics": {"AP": 20.0}})
    refuse_worse(standing, figure, COCO, data_set, data)
    change_card(standing, evaluation=[{**figure.model_dump(), **change}])
    with pytest.raises(AssertionError, match=NO_NETWORK):
        refuse_worse(standing, figure, COCO, data_set, data)


def test_another_skeleton_is_not_replaced(standing: Path, data: Path, data_set: DataSet) -> None:
    figure = read_card(standing).evaluation[0]
    with pytest.raises(PublishError, match=r"has skeleton coco17, this run lsp14: .*--force"):
        refuse_worse(standing, figure, LSP, data_set, data)


def test_a_damaged_package_has_no_claim_to_its_place(
    standing: Path, data: Path, data_set: DataSet, caplog: pytest.LogCaptureFixture
) -> None:
    figure = read_card(standing).evaluation[0]
    (standing / WEIGHTS).write_bytes(b"damaged")
    refuse_worse(standing, figure, COCO, data_set, data)
    assert "has no claim to its place" in caplog.text
    refuse_worse(standing / "nobody", figure, COCO, data_set, data)


@pytest.mark.parametrize(
    ("metrics", "name"),
    [
        ({"PCK@0.2": 1, "PCKh@0.5 mean": 2, "AP": 3}, "AP"),
        ({"PCK@0.2": 1, "PCKh@0.5 mean": 2}, "PCKh@0.5 mean"),
        ({"PCK@0.2": 1}, "PCK@0.2"),
    ],
)
def test_the_first_figure_that_the_labels_allow_decides(published: Path, metrics: dict[str, float], name: str) -> None:
    entry = read_card(published).evaluation[0]
    assert deciding_metric(entry.model_copy(update={"metrics": metrics})) == name
    with pytest.raises(PublishError, match="no figure to decide by"):
        deciding_metric(entry.model_copy(update={"metrics": {"AR": 1.0}}))
