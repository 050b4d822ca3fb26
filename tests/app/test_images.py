"""Bytes become an upright RGB picture, or are refused for a reason that fits."""

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from serving import encode_picture

from app.images import ImageError, decode, encode

LIMIT = 1_000_000
ORIENTATION = 0x0112


def upright() -> np.ndarray:
    """(48, 64, 3) uint8: every 16 x 16 block has its own colour, so that no two turns look the same."""
    blocks = np.random.default_rng(7).integers(0, 256, (3, 4, 3), np.uint8)
    return blocks.repeat(16, 0).repeat(16, 1)


def stored(orientation: int) -> np.ndarray:
    """How a camera that says `orientation` stores the upright picture."""
    turn = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }
    return np.ascontiguousarray(turn[orientation](upright()))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    picture = decode(encode_picture(stored(orientation), kind, exif=exif, **options), LIMIT)
    assert picture.shape == (48, 64, 3)
    assert np.abs(picture.astype(int) - upright()).mean() < (4 if kind == "JPEG" else 1e-9)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_out_of_range_is_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    assert np.array_equal(decode(encode_picture(upright(), exif=exif), LIMIT), upright())


def test_a_broken_exif_block_is_no_reason_to_refuse() -> None:
    data = encode_picture(upright(), "PNG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert np.array_equal(decode(data, LIMIT), upright())


def grey16() -> Image.Image:
    return Image.fromarray(np.full((4, 5), 200 * 257, np.uint16))


def palette() -> Image.Image:
    image = Image.new("P", (5, 4), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    return image


@pytest.mark.parametrize(
    ("image", "kind", "color"),
    [
        pytest.param(Image.new("L", (5, 4), 90), "PNG", (90, 90, 90), id="grey"),
        pytest.param(Image.new("1", (5, 4), 1), "PNG", (255, 255, 255), id="one bit"),
        pytest.param(grey16(), "PNG", (200, 200, 200), id="16-bit grey is scaled, not clipped"),
        pytest.param(palette(), "PNG", (10, 20, 30), id="palette"),
        pytest.param(Image.new("RGBA", (5, 4), (10, 20, 30, 255)), "PNG", (10, 20, 30), id="opaque"),
        pytest.param(Image.new("RGBA", (5, 4), (0, 0, 0, 0)), "PNG", (255, 255, 255), id="transparent is white"),
        pytest.param(Image.new("LA", (5, 4), (0, 0)), "PNG", (255, 255, 255), id="transparent grey is white"),
        pytest.param(Image.new("RGBA", (5, 4), (0, 0, 0, 0)), "WEBP", (255, 255, 255), id="transparent WebP is white"),
        pytest.param(Image.new("CMYK", (5, 4), (0, 0, 0, 255)), "JPEG", (0, 0, 0), id="CMYK"),
        pytest.param(Image.new("L", (5, 4), 90), "JPEG", (90, 90, 90), id="grey JPEG"),
    ],
)
def test_every_mode_becomes_rgb(image: Image.Image, kind: str, color: tuple[int, int, int]) -> None:
    picture = decode(encode_picture(image, kind), LIMIT)
    assert picture.shape == (4, 5, 3)
    assert picture.dtype == np.uint8
    assert picture.flags.c_contiguous
    assert np.abs(picture.astype(int) - color).max() <= 2


def test_a_transparent_palette_colour_is_white() -> None:
    assert decode(encode_picture(palette(), "PNG", transparency=1), LIMIT).min() == 255


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_an_animation_gives_its_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (5, 4), color) for color in ((250, 0, 0), (0, 250, 0))]
    assert tuple(decode(encode_picture(frames[0], kind, save_all=True, append_images=frames[1:]), LIMIT)[0, 0]) == (
        250,
        0,
        0,
    )


def bare_png(width: int, height: int) -> bytes:
    """A PNG that announces a size and has next to no pixels, as a decompression bomb would begin."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(8)))


PNG = encode_picture(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
JPEG = encode_picture(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8), "JPEG")
WEBP = encode_picture(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8), "WEBP")


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        pytest.param(b"", 400, "not_an_image", id="nothing"),
        pytest.param(b"hello", 400, "not_an_image", id="text"),
        pytest.param(PNG[: len(PNG) // 2], 400, "damaged_image", id="half a PNG"),
        pytest.param(JPEG[: len(JPEG) // 2], 400, "damaged_image", id="half a JPEG"),
        pytest.param(WEBP[: len(WEBP) // 2], 400, None, id="half a WebP"),
        pytest.param(JPEG[:20], 400, None, id="the start of a JPEG"),
        pytest.param(bare_png(10, 10), 400, "damaged_image", id="hardly any pixels"),
        pytest.param(bare_png(0, 10), 400, None, id="no width"),
        pytest.param(bare_png(100_000, 100_000), 413, "too_many_pixels", id="ten thousand megapixels announced"),
        pytest.param(bare_png(1001, 1000), 413, "too_many_pixels", id="just over the limit"),
        pytest.param(encode_picture(Image.new("RGB", (2, 2)), "GIF"), 415, "unsupported_type", id="GIF"),
        pytest.param(encode_picture(Image.new("RGB", (2, 2)), "BMP"), 415, "unsupported_type", id="BMP"),
        pytest.param(encode_picture(Image.new("RGB", (2, 2)), "TIFF"), 415, "unsupported_type", id="TIFF"),
        pytest.param(b"\0\0\0\x18ftypheic" + bytes(20), 415, "unsupported_type", id="HEIC"),
    ],
)
def test_what_is_no_picture_is_refused(data: bytes, status: int, code: str | None) -> None:
    with pytest.raises(ImageError) as caught:
        decode(data, LIMIT)
    assert caught.value.status == status
    assert code in (None, caught.value.code)


def test_a_picture_of_exactly_the_limit_is_taken() -> None:
    assert decode(PNG, 64 * 64).shape == (64, 64, 3)


@pytest.mark.parametrize("data", [PNG, JPEG, WEBP], ids=["PNG", "JPEG", "WebP"])
def test_flipped_bytes_never_raise_anything_else(data: bytes) -> None:
    random = np.random.default_rng(1)
    for _ in range(60):
        damaged = bytearray(data)
        for place in random.integers(0, len(data), 8):
            damaged[place] = random.integers(256)
        with contextlib.suppress(ImageError):
            assert decode(bytes(damaged), LIMIT).shape[2] == 3


@pytest.mark.parametrize(("media_type", "kind"), [("image/jpeg", "JPEG"), ("image/png", "PNG")])
def test_encoding_gives_the_type_asked_for(media_type: str, kind: str) -> None:
    with Image.open(io.BytesIO(encode(upright(), media_type))) as image:
        assert (image.format, image.size) == (kind, (64, 48))
