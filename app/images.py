"""Bytes to an oriented RGB picture, limits first.

Only JPEG, PNG and WebP are opened; the pixel count is read from the header before anything is decoded. The picture is
as a person sees it: EXIF orientation applied, transparency laid on white, the first frame of an animation.
"""

import io
import logging

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from app.errors import RequestError

logger = logging.getLogger(__name__)

LONGEST_JPEG = 65_500  # pixels a side; libjpeg's limit

Picture = npt.NDArray[np.uint8]

MEDIA_TYPES = ("image/jpeg", "image/png", "image/webp")
OTHER_FORMATS = {  # magic bytes of what people send by mistake, so that they are told what it is
    b"GIF8": "GIF", b"BM": "BMP", b"II*\0": "TIFF", b"MM\0*": "TIFF", b"%PDF": "PDF", b"<svg": "SVG",
}  # fmt: skip
CONTAINERS = {b"heic": "HEIC", b"heix": "HEIC", b"mif1": "HEIF", b"avif": "AVIF", b"isom": "MP4", b"mp42": "MP4"}

ORIENTATION_TAG = 0x0112
ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(RequestError):
    """These bytes are no picture that is accepted here."""


def decode(data: bytes, max_pixels: int) -> Picture:
    """Decode a JPEG, PNG or WebP.

    Returns:
        (H, W, 3) uint8 RGB, C-contiguous, EXIF orientation applied.

    Raises:
        ImageError: 400 no picture or a damaged one, 413 too many pixels, 415 another format.
    """
    reader = _find_reader(data)
    if reader is None:
        raise _refuse(data)
    try:
        image = reader(io.BytesIO(data))
    except Exception as error:  # noqa: BLE001 - Pillow's format readers raise whatever a damaged header makes them meet
        raise _damaged(error) from None
    with image:
        width, height = image.size
        if width * height > max_pixels:
            raise ImageError(
                413,
                "too_many_pixels",
                f"the picture has {width} x {height} = {width * height} pixels, the limit is {max_pixels}: "
                "send a smaller one",
            )
        try:
            rgb = _to_rgb(image)
            transpose = ORIENTATIONS.get(_orientation(image))
            return np.ascontiguousarray(rgb if transpose is None else rgb.transpose(transpose))
        except Exception as error:  # noqa: BLE001 - as above, for damaged pixel data
            raise _damaged(error) from None


def _find_reader(data: bytes) -> type[ImageFile] | None:
    """The format's reader by its first bytes. Not `Image.open`: that one tries formats by turns, and ultralytics puts
    its own in its place, which reaches for other packages on what it does not know."""
    if data.startswith(b"\xff\xd8\xff"):
        return JpegImageFile
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return PngImageFile
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return WebPImageFile
    return None


def _to_rgb(image: Image.Image) -> Image.Image:
    """Eight-bit RGB, whatever the picture's mode; transparency on white."""
    if image.mode.startswith("I"):  # 16-bit grey; `convert` would clip instead of scale
        return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        clear = image.convert("RGBA")
        white = Image.new("RGBA", clear.size, "white")
        return Image.alpha_composite(white, clear).convert("RGB")
    return image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8; 1 where there is none or the EXIF block is broken."""
    try:
        value = image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # noqa: BLE001 - a broken EXIF block raises whatever it meets, and is no reason to refuse
        logger.debug("EXIF block is broken, orientation taken as upright")
        return 1
    return value if isinstance(value, int) else 1


def _refuse(data: bytes) -> ImageError:
    head = data[:16].lstrip()
    name = next((name for magic, name in OTHER_FORMATS.items() if head.startswith(magic)), None)
    if data[4:8] == b"ftyp":
        name = CONTAINERS.get(data[8:12], "MP4 or HEIF")
    if name is not None:
        return ImageError(415, "unsupported_type", f"this is {name}; accepted are JPEG, PNG and WebP")
    return ImageError(400, "not_an_image", "these bytes are no JPEG, PNG or WebP picture")


def _damaged(error: Exception) -> ImageError:
    logger.debug("picture refused: %s: %s", type(error).__name__, error)
    return ImageError(400, "damaged_image", "the picture is damaged or cut short; send the whole file")


def encode(picture: Picture, media_type: str) -> bytes:
    """A (H, W, 3) uint8 RGB picture as `image/jpeg` or `image/png`.

    Raises:
        ImageError: 422, longer than a JPEG can be.
    """
    buffer = io.BytesIO()
    height, width = picture.shape[:2]
    if media_type == "image/jpeg" and max(height, width) > LONGEST_JPEG:
        raise ImageError(
            422, "too_long_for_jpeg",
            f"a JPEG has at most {LONGEST_JPEG} pixels a side, this picture is {width} x {height}: ask for image/png",
        )  # fmt: skip
    if media_type == "image/png":
        Image.fromarray(picture).save(buffer, "PNG", compress_level=3)
    else:
        Image.fromarray(picture).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()
