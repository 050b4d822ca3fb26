"""One optimiser step: parts of a batch, a teacher, another skeleton, half precision."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from model.codec import HeatmapCodec
from model.networks import build
from model.package import load_package
from model.skeletons import COCO, MPII, SKELETONS
from training.config import ConfigError, Distillation, Phase, TrainConfig
from training.distillation import Teacher
from training.distributed import Workers
from training.trainer import Trainer
from training.warm_start import narrowed, warm_start

ALONE = Workers(0, 1, torch.device("cpu"))
CODEC = HeatmapCodec((64, 48), 1.0, "softmax")
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[int]]


def batch(skeleton: str = "coco17", seed: int = 0) -> Batch:
    """Four crops, the last two the same as the first two."""
    torch.manual_seed(seed)
    joints = len(SKELETONS[skeleton])
    crops = torch.randint(0, 256, (2, 64, 48, 3), dtype=torch.uint8)
    keypoints = torch.rand(2, joints, 2) * torch.tensor([47.0, 63.0])
    weights = torch.randint(0, 2, (2, joints)).float()
    return crops.repeat(2, 1, 1, 1), keypoints.repeat(2, 1, 1), weights.repeat(2, 1), [0, 1, 0, 1]


def test_a_batch_in_parts_is_the_batch_at_once(config: TrainConfig, tmp_path: Path) -> None:
    states, losses = [], []
    for parts in (1, 2):
        trainer = Trainer(config, tmp_path, ALONE)
        phase = Phase(input_size=(64, 48), samples=8, batch=4, accumulate=parts)
        losses.append(trainer.train_batch(batch(), phase, CODEC, []))
        states.append([p.grad for p in trainer.network.parameters()])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    whole, parts = (torch.cat([p.flatten() for p in state]) for state in states)
    assert (whole - parts).norm() < 0.02 * whole.norm()  # rounding, amplified by batch norms of a few numbers


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_computes_nearly_the_same_loss(config: TrainConfig, tmp_path: Path, precision: str) -> None:
    phase = Phase(input_size=(64, 48), samples=8, batch=4)
    losses = []
    for kind in ("float32", precision):
        trainer = Trainer(config.model_copy(update={"precision": kind}), tmp_path, ALONE)
        before = [p.detach().clone() for p in trainer.network.parameters()]
        losses.append(trainer.train_batch(batch(), phase, CODEC, []))
        assert any((a != b).any() for a, b in zip(before, trainer.network.parameters(), strict=True))
    assert losses[0] == pytest.approx(losses[1], rel=0.01)


@pytest.mark.parametrize(
    ("asked", "fast", "used"),
    [("auto", True, "bf16"), ("auto", False, "float32"), ("float32", True, "float32"), ("bf16", False, "bf16")],
)
def test_half_precision_is_the_default_where_the_cpu_has_it(
    config: TrainConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    asked: str,
    fast: bool,
    used: str,
) -> None:
    monkeypatch.setattr("training.trainer.has_bf16", lambda: fast)
    trainer = Trainer(config.model_copy(update={"precision": asked}), tmp_path, ALONE)
    with trainer.autocast():
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == {"bf16": torch.bfloat16, "float32": torch.float32}[used]
    assert ("only imitates bf16" in caplog.text) == (asked == "bf16" and not fast)


def test_a_student_learns_from_its_teacher_alone(config: TrainConfig, pose_package: Path, tmp_path: Path) -> None:
    taught = config.model_copy(update={"distillation": Distillation(teacher=str(pose_package), weight=1.0)})
    trainer = Trainer(taught, tmp_path, ALONE)
    phase = Phase(input_size=(64, 48), samples=80, batch=4)
    crops, keypoints, _, indices = batch()
    unlabelled = crops, keypoints, torch.zeros(4, 17), indices
    losses = [trainer.train_batch(unlabelled, phase, CODEC, []) for _ in range(8)]
    assert losses[-1] < losses[0] - 0.05


def test_a_teacher_teaches_the_joints_it_knows_by_name(pose_package: Path) -> None:
    teacher = Teacher(str(pose_package), MPII, ALONE.device)
    pixels = torch.randn(2, 3, 64, 48)
    heatmaps, known = teacher.targets(pixels)
    assert heatmaps.shape == (2, 16, 16, 12)
    names = {name for name, weight in zip(MPII.joints, known[0], strict=True) if weight}
    assert names == set(MPII.joints) & set(COCO.joints)
    own = load_package(str(pose_package)).network(pixels)
    mine, theirs = heatmaps[:, MPII.joints.index("left_knee")], own[:, COCO.joints.index("left_knee")]
    assert torch.equal(mine.flatten(1).argmax(1), theirs.flatten(1).argmax(1))


def test_weights_start_from_a_package_joint_by_joint(pose_package: Path) -> None:
    package = load_package(str(pose_package))
    network = build("sdhrnet_w16", len(MPII))
    fresh = network.head.weight.detach().clone()
    warm_start(network, str(pose_package), MPII)
    old = package.network.state_dict()
    for name, value in network.state_dict().items():
        if not name.startswith("head."):
            assert torch.equal(value, old[name]), name
    for i, joint in enumerate(MPII.joints):
        known = old["head.weight"][COCO.joints.index(joint)] if joint in COCO.joints else fresh[i]
        assert torch.equal(network.head.weight[i], known), joint


def test_a_package_of_another_network_is_no_start(pose_package: Path) -> None:
    with pytest.raises(ConfigError, match="is a sdhrnet_w16"):
        warm_start(build("sdhrnet_w32", 17), str(pose_package), COCO)


def test_a_network_of_half_the_width_takes_every_second_channel() -> None:
    old, network = load_package("sdhrnet_w32_coco").network.state_dict(), build("sdhrnet_w16", len(MPII))
    fresh = network.head.weight.detach().clone()
    warm_start(network, "sdhrnet_w32_coco", MPII)
    new = network.state_dict()
    assert torch.equal(new["stem.0.0.weight"], old["stem.0.0.weight"])
    assert torch.equal(new["pyramid.atrous.0.0.weight"], 2 * old["pyramid.atrous.0.0.weight"][:, ::2])
    second = old["pyramid.atrous.1.0.weight"]  # reads the features and all of what the first has found
    assert torch.equal(new["pyramid.atrous.1.0.weight"], 1.5 * torch.cat([second[:, :32:2], second[:, 32:]], 1))
    for i, joint in enumerate(MPII.joints):
        known = 2 * old["head.weight"][COCO.joints.index(joint), ::2] if joint in COCO.joints else fresh[i]
        assert torch.equal(network.head.weight[i], known), joint


@pytest.mark.parametrize(
    ("size", "wanted", "kept"), [(6, 6, range(6)), (6, 3, (0, 2, 4)), (6, 4, (0, 2, 4, 5)), (5, 4, (0, 2, 3, 4))]
)
def test_surplus_inputs_go_from_the_front(size: int, wanted: int, kept: Sequence[int]) -> None:
    inputs = narrowed(torch.arange(float(size))[None], torch.Size([1, wanted]))
    assert inputs[0].tolist() == pytest.approx([size / wanted * value for value in kept])


def test_half_of_the_outputs_is_every_second_one() -> None:
    assert narrowed(torch.arange(6), torch.Size([3])).tolist() == [0, 2, 4]


def test_a_kernel_keeps_its_middle() -> None:
    assert narrowed(torch.arange(5).reshape(1, 1, 5), torch.Size([1, 1, 3])).tolist() == [[[1, 2, 3]]]


@pytest.mark.parametrize("shape", [(2, 4), (5, 4), (9, 4), (6, 1), (6, 5), (6,), (6, 4, 1)])
def test_other_sizes_are_no_half_of_a_network(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="cannot become"):
        narrowed(torch.zeros(6, 4), torch.Size(shape))


def test_a_network_of_three_quarters_of_the_width_has_no_start() -> None:
    with pytest.raises(ConfigError, match="not the configured network or one of twice its width"):
        warm_start(build("sdhrnet_w32", 17, width=24), "sdhrnet_w32_coco", COCO)
