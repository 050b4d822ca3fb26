"""Weight packages: what is written is read; whatever is damaged is named."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from model.errors import PackageError
from model.inference import estimate
from model.networks import build
from model.networks.pixels import PixelNetwork
from model.package import BUNDLED, CARD, WEIGHTS, bundled_packages, find_package, load_package, read_card, write_package
from model.skeletons import COCO


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return build("sdhrnet_w16", 17).eval()


def fields(**changes: Any) -> dict[str, Any]:
    return {
        "name": "tiny",
        "version": "1",
        "architecture": {"name": "sdhrnet_w16", "joints": 17},
        "input_size": (64, 48),
        "skeleton": "coco17",
        "codec": {"sigma": 0.5, "activation": "softmax"},
        "git_commit": "unknown",
        "created": "2026-01-01T00:00:00+00:00",
        "licence": "none",
        "data": [],
        "recipe": {},
        "evaluation": [],
        **changes,
    }


def test_a_package_gives_back_the_network_to_half_precision(tmp_path: Path, network: nn.Module) -> None:
    card = write_package(tmp_path / "tiny", fields(), network.state_dict())
    package = load_package(str(tmp_path / "tiny"))
    assert package.card == card == read_card(tmp_path / "tiny")
    assert package.codec.input_size == (64, 48)
    assert not package.network.training
    state = network.state_dict()
    for name, tensor in package.network.state_dict().items():
        torch.testing.assert_close(tensor, state[name], rtol=1e-3, atol=1e-4)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_a_new_version_replaces_the_old_one(tmp_path: Path, network: nn.Module) -> None:
    for version in ("1", "2"):
        write_package(tmp_path / "tiny", fields(version=version), network.state_dict())
    assert load_package(str(tmp_path / "tiny")).card.version == "2"
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_weights_that_overflow_half_precision_leave_the_old_package(tmp_path: Path, network: nn.Module) -> None:
    write_package(tmp_path / "tiny", fields(), network.state_dict())
    state = network.state_dict()
    state["head.bias"] = torch.full((17,), 1e6)
    with pytest.raises(PackageError, match=r"head\.bias is not finite in half precision"):
        write_package(tmp_path / "tiny", fields(version="2"), state)
    assert load_package(str(tmp_path / "tiny")).card.version == "1"


def test_a_card_that_does_not_fit_is_refused_when_written(tmp_path: Path, network: nn.Module) -> None:
    with pytest.raises(PackageError, match="17 joints"):
        write_package(tmp_path / "tiny", fields(skeleton="mpii16"), network.state_dict())
    assert list(tmp_path.iterdir()) == []


def _flip_a_byte(folder: Path) -> None:
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (folder / WEIGHTS).write_bytes(content)


def _edit(**changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        card = json.loads((folder / CARD).read_text())
        (folder / CARD).write_text(json.dumps({**card, **changes}))

    return edit


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(_flip_a_byte, "sha256 is", id="weights changed"),
        pytest.param(lambda folder: (folder / WEIGHTS).unlink(), "weights.safetensors is missing", id="no weights"),
        pytest.param(lambda folder: (folder / CARD).unlink(), "card.json is missing", id="no card"),
        pytest.param(lambda folder: (folder / CARD).write_text("{"), "Invalid JSON", id="card is no json"),
        pytest.param(_edit(surprise=1), "surprise", id="unknown field"),
        pytest.param(_edit(skeleton="squid"), "unknown skeleton 'squid'", id="unknown skeleton"),
        pytest.param(_edit(skeleton="lsp14"), "17 joints, skeleton lsp14 has 14", id="wrong skeleton"),
        pytest.param(
            _edit(architecture={"name": "vit", "joints": 17}), "unknown network 'vit'", id="unknown architecture"
        ),
        pytest.param(
            _edit(architecture={"name": "hrnet_w32", "joints": 17}), "does not fit hrnet_w32", id="wrong architecture"
        ),
        pytest.param(_edit(input_size=[63, 48]), "divisible by 4", id="impossible size"),
    ],
)
def test_damage_is_named(tmp_path: Path, network: nn.Module, damage: Callable[[Path], None], message: str) -> None:
    write_package(tmp_path / "tiny", fields(), network.state_dict())
    damage(tmp_path / "tiny")
    with pytest.raises(PackageError, match=message):
        load_package(str(tmp_path / "tiny"))


@pytest.mark.parametrize("name", ["nothing_here", "../packages", "", "/etc/passwd"])
def test_unknown_packages_are_named_beside_the_known_ones(name: str) -> None:
    with pytest.raises(PackageError, match="no weight package"):
        find_package(name or "nowhere")


def test_the_bundled_pose_package_is_whole() -> None:
    assert "sdhrnet_w32_coco" in bundled_packages()
    package = load_package("sdhrnet_w32_coco")
    assert package.card.skeleton == "coco17"
    assert package.card.architecture.name == "sdhrnet_w32"
    assert (BUNDLED / "sdhrnet_w32_coco" / WEIGHTS).stat().st_size < 40e6
    assert any(entry.data == "coco-val" for entry in package.card.evaluation)


CALIBRATION = {
    "method": "isotonic", "table": {joint: [0.0, 0.5] for joint in COCO.joints}, "data": "a-set", "flip_test": True,
    "pictures": 10, "joints": 500, "bins": 15, "error_before": 0.1, "error_after": 0.02,
}  # fmt: skip


def test_a_calibrated_package_serves_calibrated_scores(tmp_path: Path, network: nn.Module) -> None:
    write_package(tmp_path / "tiny", fields(calibration=CALIBRATION), network.state_dict())
    package = load_package(str(tmp_path / "tiny"))
    crops = np.random.default_rng(0).integers(0, 256, (2, 64, 48, 3), np.uint8)
    pixels = PixelNetwork(package.network, package.card)

    @torch.inference_mode()
    def engine(crops: np.ndarray) -> torch.Tensor:
        heatmaps: torch.Tensor = pixels(torch.from_numpy(crops))
        return heatmaps

    plain = replace(package.codec, calibration=())
    _, scores = estimate(engine, crops, package.codec, package.skeleton, flip_test=True)
    _, raw = estimate(engine, crops, plain, package.skeleton, flip_test=True)
    assert raw.max() > 0
    np.testing.assert_allclose(scores, raw / 2, rtol=1e-5)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"nose": [0.0, 0.5]}, "calibration lacks left_ankle"),
        ({**CALIBRATION["table"], "nose": [0.5, 0.4]}, "calibration must hold"),  # type: ignore[dict-item]
        ({**CALIBRATION["table"], "nose": [0.0, 1.5]}, "less than or equal to 1"),  # type: ignore[dict-item]
    ],
)
def test_a_calibration_that_does_not_fit_is_named(
    tmp_path: Path, network: nn.Module, table: dict[str, list[float]], message: str
) -> None:
    write_package(tmp_path / "tiny", fields(calibration=CALIBRATION), network.state_dict())
    path = tmp_path / "tiny" / CARD
    card = json.loads(path.read_text())
    card["calibration"]["table"] = table
    path.write_text(json.dumps(card))
    with pytest.raises(PackageError, match=message):
        load_package(str(tmp_path / "tiny"))


def test_cards_from_before_intervals_and_calibration_are_read(tmp_path: Path, network: nn.Module) -> None:
    old = {"data": "a", "pictures": 1, "people": 2, "boxes": "ground truth", "flip_test": True, "metrics": {"AP": 1.0}}
    write_package(tmp_path / "tiny", fields(evaluation=[old], calibration=None), network.state_dict())
    path = tmp_path / "tiny" / CARD
    card = json.loads(path.read_text())
    del card["evaluation"][0]["intervals"], card["evaluation"][0]["notes"]
    path.write_text(json.dumps(card))
    [entry] = read_card(tmp_path / "tiny").evaluation
    assert (entry.metrics, entry.intervals, entry.notes) == ({"AP": 1.0}, {}, [])
