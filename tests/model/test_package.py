"""Weight packages: what is written is read; whatever is damaged is named."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from model.errors import PackageError
from model.networks import build
from model.package import BUNDLED, CARD, WEIGHTS, bundled_packages, find_package, load_package, read_card, write_package


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
    for name, tensor in package.network.state_dict().items():
        torch.testing.assert_close(tensor, network.state_dict()[name], rtol=1e-3, atol=1e-4)
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
