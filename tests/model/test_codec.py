"""The codec: what is encoded is decoded to the same place, for any sub-pixel position, in any batch."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.codec import Activation, HeatmapCodec, default_sigma, merge_flip
from model.skeletons import COCO

SIZES = [(256, 192), (256, 256), (128, 96), (384, 288)]


def codec_of(size: tuple[int, int], activation: str = "identity") -> HeatmapCodec:
    return HeatmapCodec(size, default_sigma(size), activation)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", SIZES, ids=str)
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_decoding_undoes_encoding_at_any_sub_pixel_place(size: tuple[int, int], seed: int) -> None:
    codec = codec_of(size)
    rows, columns = codec.heatmap_size
    room = torch.tensor([columns - 1, rows - 1]) - 4 * codec.sigma
    places = torch.rand(8, 17, 2, generator=torch.Generator().manual_seed(seed)) * room + 2 * codec.sigma
    scale = torch.tensor(codec.scale)
    decoded, scores = codec.decode(codec.encode(places * scale))
    error = (decoded / scale - places).norm(dim=-1)  # heatmap pixels
    assert error.mean() < 0.02
    assert error.max() < 0.05
    assert scores.min() > 0.5


@pytest.mark.parametrize("activation", ["identity", "softmax"])
def test_a_perfect_network_output_scores_one_under_both_activations(activation: str) -> None:
    codec = codec_of((256, 192), activation)
    joint = torch.tensor([[[96.0 * 191 / 192, 128.0]]])
    grid = torch.tensor(codec.scale) * torch.tensor([24.0, 32.0])
    heatmap = codec.encode(grid.view(1, 1, 2))
    raw = heatmap if activation == "identity" else heatmap.clamp(min=1e-30).log()
    decoded, scores = codec.decode(codec.activate(raw))
    torch.testing.assert_close(decoded, grid.view(1, 1, 2), rtol=0, atol=0.05)
    assert scores.item() == pytest.approx(1, abs=0.01)
    assert joint.shape == decoded.shape


def test_decoding_a_batch_equals_decoding_each_alone() -> None:
    codec = codec_of((128, 96))
    heatmaps = torch.rand(5, 17, 32, 24, generator=torch.Generator().manual_seed(1))
    together = codec.decode(heatmaps)
    alone = [codec.decode(one[None]) for one in heatmaps]
    torch.testing.assert_close(together[0], torch.cat([keypoints for keypoints, _ in alone]))
    torch.testing.assert_close(together[1], torch.cat([scores for _, scores in alone]))


@pytest.mark.parametrize(
    "heatmap",
    [
        pytest.param(torch.zeros(1, 1, 32, 24), id="flat"),
        pytest.param(-torch.rand(1, 1, 32, 24), id="negative"),
        pytest.param(torch.rand(1, 1, 32, 24) * 1e-9, id="tiny"),
        pytest.param(torch.eye(32)[:, :24].view(1, 1, 32, 24) * 5, id="ridge"),
    ],
)
def test_hopeless_heatmaps_still_decode_inside_the_crop(heatmap: torch.Tensor) -> None:
    codec = codec_of((128, 96))
    keypoints, scores = codec.decode(heatmap)
    assert keypoints.isfinite().all()
    assert (keypoints >= -8).all()
    assert (keypoints <= torch.tensor([103, 135])).all()
    assert ((scores >= 0) & (scores <= 1)).all()


@pytest.mark.parametrize("corner", [(0, 0), (95, 0), (0, 127), (95, 127)])
def test_joints_in_the_corners_are_found(corner: tuple[int, int]) -> None:
    codec = codec_of((128, 96))
    place = torch.tensor([[corner]], dtype=torch.float32)
    keypoints, _ = codec.decode(codec.encode(place))
    assert (keypoints - place).abs().max() < 1


def test_nobody_decodes_to_nothing() -> None:
    keypoints, scores = codec_of((128, 96)).decode(torch.zeros(0, 17, 32, 24))
    assert keypoints.shape == (0, 17, 2)
    assert scores.shape == (0, 17)


def test_merging_a_flip_of_mirrored_heatmaps_changes_nothing() -> None:
    heatmaps = torch.rand(2, 17, 32, 24)
    swaps = torch.as_tensor(COCO.swaps)
    torch.testing.assert_close(merge_flip(heatmaps, heatmaps[:, swaps].flip(-1), swaps), heatmaps)


def test_encoding_a_mirrored_joint_gives_the_mirrored_heatmap() -> None:
    codec = codec_of((128, 96))
    place = torch.tensor([[[31.3, 50.7]]])
    mirrored = torch.tensor([[[95 - 31.3, 50.7]]])
    torch.testing.assert_close(codec.encode(mirrored), codec.encode(place).flip(-1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("size", "sigma"), [((255, 192), 2.0), ((0, 192), 2.0), ((256, 192), 0.0)])
def test_impossible_codecs_are_refused(size: tuple[int, int], sigma: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        HeatmapCodec(size, sigma)


def test_default_sigma_is_hrnets() -> None:
    assert [default_sigma(size) for size in [(256, 192), (384, 288), (256, 256)]] == [2.0, 3.0, 2.0]
    assert np.isclose(default_sigma((128, 96)), 1.0)


def test_calibrated_scores_lie_on_the_lines_of_their_joints_table() -> None:
    table = ((0.0, 0.2, 1.0), (0.1, 0.1, 0.5))  # at raw scores 0, 0.5 and 1
    codec = HeatmapCodec((64, 48), 1.0, calibration=table)
    raw = torch.tensor([[0.25, 0.25], [0.5, 0.5], [0.75, 0.75], [0.0, 0.0], [1.0, 1.0]])
    wanted = torch.tensor([[0.1, 0.1], [0.2, 0.1], [0.6, 0.3], [0.0, 0.1], [1.0, 0.5]])
    torch.testing.assert_close(codec.calibrate(raw), wanted)


def test_decoding_calibrates_the_scores_and_leaves_the_places() -> None:
    plain = codec_of((64, 48))
    codec = HeatmapCodec((64, 48), plain.sigma, calibration=((0.0, 0.5),) * 3)
    heatmaps = torch.rand(2, 3, 16, 12, generator=torch.Generator().manual_seed(0))
    places, scores = codec.decode(heatmaps)
    raw_places, raw_scores = plain.decode(heatmaps)
    assert torch.equal(places, raw_places)
    torch.testing.assert_close(scores, raw_scores / 2)
    assert codec.decode(heatmaps[:0])[1].shape == (0, 3)


@given(scores=st.lists(st.floats(0, 1, width=32), min_size=2, max_size=30))
@settings(deadline=None)
def test_calibrated_scores_never_fall_where_raw_ones_rise(scores: list[float]) -> None:
    codec = HeatmapCodec((64, 48), 1.0, calibration=((0.0, 0.3, 0.3, 0.35, 0.9),))
    calibrated = codec.calibrate(torch.tensor(sorted(scores))[:, None])
    assert (calibrated.diff(dim=0) >= -1e-6).all()
    assert ((calibrated >= 0) & (calibrated <= 1)).all()


@pytest.mark.parametrize(
    "table",
    [
        pytest.param(((0.0, 0.5), (0.5, 0.4)), id="falls"),
        pytest.param(((0.0, 0.5), (0.5,)), id="not equally long"),
        pytest.param(((0.5,),), id="one step"),
    ],
)
def test_a_calibration_that_is_no_rising_table_is_refused(table: tuple[tuple[float, ...], ...]) -> None:
    with pytest.raises(ValueError, match="calibration must hold"):
        HeatmapCodec((64, 48), 1.0, calibration=table)


@pytest.mark.parametrize("activation", ["identity", "softmax"])
def test_arrays_and_tensors_decode_alike(activation: Activation) -> None:
    table = ((0.0, 0.3, 0.5, 1.0), (0.1, 0.2, 0.9, 1.0), (0.0, 0.0, 0.0, 0.0))
    codec = HeatmapCodec((128, 96), 1.5, activation, table)
    raw = torch.randn(4, 3, 32, 24, generator=torch.Generator().manual_seed(0))
    raw[0] = 0  # no joint at all
    swaps = np.array([1, 0, 2])

    def run(maps: Any) -> tuple[Any, Any]:
        maps = codec.activate(maps)
        return codec.decode(merge_flip(maps[:3], maps[1:], swaps))

    arrays, tensors = run(raw.numpy()), run(raw)
    for array, tensor in zip(arrays, tensors, strict=True):
        assert isinstance(array, np.ndarray)
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, tensor.numpy(), atol=2e-3)
    nobody = codec.decode(raw.numpy()[:0])
    assert [part.shape for part in nobody] == [(0, 3, 2), (0, 3)]
