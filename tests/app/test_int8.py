"""int8: ranges are found, kept beside the weights, put back into the graph, and refused where they do not fit."""

import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import openvino
import pytest
import torch
from torch import nn

from app.engines import Runtime, choose_runtime, create_pose_engine
from app.engines.int8 import QuantiseError, find_ranges, insert_ranges
from app.engines.openvino import OpenVINOEngine, convert
from app.settings import Settings, SettingsError
from model.card import Evaluation, Shift
from model.errors import PackageError
from model.networks.blocks import conv_bn
from model.package import CARD, INT8, add_ranges, load_package
from model.ranges import Ranges, read_ranges, write_ranges

CROPS = np.random.default_rng(0).integers(0, 256, (12, 32, 24, 3), np.uint8)
EXACT = re.compile(r"network\.head\b")


class Small(nn.Module):
    """Convolutions with and without groups, then a head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv_bn(3, 8, 3, stride=2), conv_bn(8, 8, 3, groups=8), conv_bn(8, 8, 3), conv_bn(8, 16, 3, stride=2)
        )
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heatmaps: torch.Tensor = self.head(self.body(x))
        return heatmaps


class Pixels(nn.Module):
    """`model.networks.pixels.PixelNetwork` without a card."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        heatmaps: torch.Tensor = self.network(crops.permute(0, 3, 1, 2).float() / 64 - 2)
        return heatmaps


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    network = Pixels(Small()).eval()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.bias)
    return network


def graph(network: nn.Module) -> openvino.Model:
    return convert(network, torch.from_numpy(CROPS[:2]))


@pytest.fixture(scope="module")
def ranges(network: nn.Module) -> Ranges:
    pytest.importorskip("nncf", reason="the extra `quantise` is not installed")
    return find_ranges(graph(network), CROPS, EXACT, "0" * 64)


def test_ranges_are_on_weights_and_activations_but_not_in_the_head(ranges: Ranges) -> None:
    per_channel = [one for one in ranges.ranges if one.low.size > 1]
    assert len(per_channel) >= 3
    assert len(ranges.ranges) >= 6
    assert not [place for one in ranges.ranges for place in one.places if "network.head" in place]
    assert len(ranges.constants) >= 1  # biases


def test_ranges_come_back_from_their_file(ranges: Ranges, tmp_path: Path) -> None:
    write_ranges(tmp_path / INT8, ranges)
    again = read_ranges(tmp_path / INT8)
    assert again.weights == ranges.weights
    assert again.constants.keys() == ranges.constants.keys()
    for one, other in zip(again.ranges, ranges.ranges, strict=True):
        assert (one.places, one.levels) == (other.places, other.levels)
        np.testing.assert_array_equal(one.low, other.low)
        np.testing.assert_array_equal(one.high, other.high)
    for places, value in ranges.constants.items():
        np.testing.assert_array_equal(again.constants[places], value)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / INT8).write_bytes(b"nothing")
    with pytest.raises(PackageError, match=r"int8\.safetensors holds no int8 ranges"):
        read_ranges(tmp_path / INT8)


def test_a_graph_with_ranges_computes_in_int8_what_the_network_computes(
    network: nn.Module, ranges: Ranges, tmp_path: Path
) -> None:
    with torch.inference_mode():
        reference = network(torch.from_numpy(CROPS))
    example = torch.from_numpy(CROPS[:2])
    for _ in range(2):  # converted, then taken from the cache
        engine = OpenVINOEngine(lambda: network, example.numpy(), "small", "int8", 1, tmp_path, EXACT, ranges)
        heatmaps = torch.from_numpy(engine(CROPS))
        error = (heatmaps - reference).abs().mean() / reference.std()
        assert 1e-4 < error < 0.05
    compiled = openvino.Core().read_model(next(tmp_path.glob("*.xml")))
    insert_ranges(compiled, ranges)
    runtime = openvino.Core().compile_model(compiled, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).get_runtime_model()
    kinds = [op.get_rt_info()["runtimePrecision"].astype(str) for op in runtime.get_ops() if is_convolution(op)]
    assert sum(kind in ("i8", "u8") for kind in kinds) >= 3
    assert "f32" in kinds  # the head


def is_convolution(operation: openvino.Node) -> bool:
    return "Convolution" in operation.get_rt_info()["layerType"].astype(str)


def test_ranges_of_another_network_are_refused_before_anything_is_changed(ranges: Ranges) -> None:
    other = graph(Pixels(nn.Sequential(conv_bn(3, 8, 3), conv_bn(8, 4, 3))).eval())
    before = len(other.get_ops())
    with pytest.raises(PackageError, match=r"do not fit this version of its network .* `pose quantise`"):
        insert_ranges(other, ranges)
    assert len(other.get_ops()) == before


def test_without_the_library_the_error_says_what_to_install(
    network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(QuantiseError, match=r"pip install 'pose-server\[quantise\]'"):
        find_ranges(graph(network), CROPS, EXACT, "0" * 64)


def fields() -> dict[str, object]:
    entry = Evaluation(
        data="a-set", pictures=1, people=2, boxes="ground truth", flip_test=False, metrics={"AP": 10.0}, notes=["int8"]
    )
    shift = Shift(joints=10, mean=1.0, high=9.0)
    return {"tool": "t", "data": "b-set", "crops": 3, "before": [entry], "after": [entry], "shift": shift}


def own_ranges(folder: Path) -> Ranges:
    return Ranges(load_package(str(folder)).card.sha256, (), {})


@pytest.fixture
def folder(pose_package: Path, tmp_path: Path) -> Path:
    """A copy of the package of random weights."""
    return Path(shutil.copytree(pose_package, tmp_path / "copy"))


def test_ranges_are_kept_with_the_package(folder: Path) -> None:
    assert load_package(str(folder)).ranges is None
    card = add_ranges(folder, own_ranges(folder), fields())
    package = load_package(str(folder))
    assert package.card == card
    assert package.card.int8 is not None
    assert package.card.int8.after[0].metrics == {"AP": 10.0}
    assert package.ranges == own_ranges(folder)
    assert [path.name for path in folder.parent.iterdir()] == ["copy"]


def test_ranges_of_other_weights_are_refused_and_the_package_stays(folder: Path) -> None:
    with pytest.raises(PackageError, match="made for other weights"):
        add_ranges(folder, Ranges("0" * 64, (), {}), fields())
    assert load_package(str(folder)).card.int8 is None
    assert not (folder / INT8).exists()


def test_ranges_that_are_not_the_cards_are_refused(folder: Path) -> None:
    add_ranges(folder, own_ranges(folder), fields())
    (folder / INT8).write_bytes(b"another")
    with pytest.raises(PackageError, match=r"int8\.safetensors is missing or not the card's"):
        load_package(str(folder))
    (folder / INT8).unlink()
    with pytest.raises(PackageError, match=r"int8\.safetensors is missing or not the card's"):
        load_package(str(folder))
    assert (folder / CARD).is_file()


def test_int8_without_ranges_is_an_error_that_names_the_command(pose_package: Path, tmp_path: Path) -> None:
    package = load_package(str(pose_package))
    with pytest.raises(PackageError, match=r"random_w16 1 has no int8 ranges: make them with `pose quantise PACKAGE`"):
        create_pose_engine(package, Runtime("openvino", "cpu", "int8", 1), tmp_path)
    assert replace(package, ranges=None) == package


def test_int8_runs_on_the_cpu_even_beside_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.engines.choice.has_cuda", lambda: True)
    monkeypatch.setattr("app.engines.choice.has_bf16", lambda: False)
    chosen = choose_runtime(Settings(precision="int8", threads=2))
    assert chosen == Runtime("openvino", "cpu", "int8", 2, (1, 2))
    for wrong in (Settings(precision="int8", engine="torch"), Settings(precision="int8", device="cuda")):
        with pytest.raises(SettingsError, match="POSE_PRECISION=int8 runs on OpenVINO on the CPU only"):
            choose_runtime(wrong)
