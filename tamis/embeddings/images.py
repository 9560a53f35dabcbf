"""Encoded images in, arrays of pixels out: the one way in which ingest, the encoders and the trainer read them."""

from __future__ import annotations

import io
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from tamis.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

Pixels8 = npt.NDArray[np.uint8]

# Pillow knows more, but to read EPS it runs another program, and reading data must run nothing.
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "GIF", "WEBP", "TIFF")
MAX_PIXELS = 2**26  # 64 megapixels: 200 MB in colour, whatever a few compressed bytes claim

_GREY = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "I;16N")
_COLOUR = ("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")


class _BadImageError(Exception):
    """Says what is wrong with one image, in words that do not vary with its content: they become reasons."""


def decode(images: Sequence[bytes], size: int | None, channels: int | None) -> Pixels8:
    """Decode images to one shape.

    Args:
        images: Encoded images: the bytes of image files. Of an animation the first frame counts; transparency
            and the camera's orientation do not. 16 bits are cut to 8.
        size: Width and height that all are brought to: squeezed where they are no squares, and antialiased
            (bilinear). None: the size that they have in common, which need not be square.
        channels: 1 (grey), 3 (red, green, blue), or None: 1 if all of them are grey, else 3.

    Returns:
        uint8[n, channels, height, width].

    Raises:
        DataError: One cannot be decoded (its position is named), or no size is given and they differ in theirs.
        ValueError: `size` or `channels` is out of range.
    """
    if (size is not None and size < 1) or channels not in (None, 1, 3):
        raise ValueError(f"size is {size} and channels {channels}; size is at least 1, channels are 1 or 3")
    with _quiet():
        if channels is None:
            channels = 1 if all(image.mode in _GREY for image in _all_opened(images)) else 3
        shape = (size, size) if size is not None else _common_size(images)
        out = np.empty((len(images), channels, shape[1], shape[0]), np.uint8)
        for position, opened in enumerate(_all_opened(images)):
            try:
                image = _converted(opened, channels)
            except Exception as error:
                raise DataError(f"image {position}: {_reason(error)}") from error
            if image.size != shape:
                image = image.resize(shape, Image.Resampling.BILINEAR)
            pixels = np.asarray(image)
            out[position] = pixels if channels == 1 else pixels.transpose(2, 0, 1)
    return out


def thumbnail(image: bytes, most: int) -> bytes:
    """A small picture of an image, for people.

    Args:
        image: Bytes of an image file that `problems` finds nothing wrong with.
        most: Its larger side is shrunk to this many pixels; a smaller one stays.

    Returns:
        The bytes of a PNG file: grey or in colour, without anything of the image's metadata.
    """
    with _quiet(), _opened(image) as opened:
        small = _converted(opened, 1 if opened.mode in _GREY else 3)
        small.thumbnail((most, most))
        small.info.clear()  # what the format would carry over
        out = io.BytesIO()
        small.save(out, "PNG")
    return out.getvalue()


def problems(images: Iterable[bytes]) -> list[str | None]:
    """For each image what keeps it from being decoded, or None: each is decoded to tell."""
    with _quiet():
        return [_problem(image) for image in images]


def _problem(image: bytes) -> str | None:
    try:
        with _opened(image) as opened:
            opened.draft(None, (1, 1))  # a JPEG's data are read to the end, with less arithmetic
            opened.load()
    except Exception as error:
        return _reason(error)
    return None


def _reason(error: Exception) -> str:
    """A damaged file can make its decoder raise anything: what is not ours means damage."""
    if isinstance(error, MemoryError):
        raise error
    if isinstance(error, _BadImageError):
        return str(error)
    return "image is damaged or truncated"


def _all_opened(images: Sequence[bytes]) -> Iterator[Image.Image]:
    """Each image with its header read, closed after use."""
    for position, image in enumerate(images):
        try:
            opened = _opened(image)
        except Exception as error:
            raise DataError(f"image {position}: {_reason(error)}") from error
        with opened:
            yield opened


def _opened(image: bytes) -> Image.Image:
    """Read the header; the pixels are decoded when they are first asked for."""
    if not image:
        raise _BadImageError("image is empty")
    try:
        opened = Image.open(io.BytesIO(image), formats=FORMATS)
    except UnidentifiedImageError as error:
        formats = ", ".join(FORMATS)
        raise _BadImageError(f"image is in none of the formats {formats}, or its header is damaged") from error
    except Image.DecompressionBombError as error:
        raise _BadImageError(f"image has more than {MAX_PIXELS} pixels") from error
    if opened.width * opened.height > MAX_PIXELS:
        raise _BadImageError(f"image has more than {MAX_PIXELS} pixels")
    if opened.width * opened.height == 0:
        raise _BadImageError("image has no pixels")
    # Whole numbers of 32 bits (TIFF) and floats have no fixed range from black to white.
    if opened.mode not in (*_GREY, *_COLOUR) or (opened.mode == "I" and opened.format == "TIFF"):
        raise _BadImageError("image has pixels of a kind that is not read; 8 and 16 bits a channel are")
    return opened


def _converted(opened: Image.Image, channels: int) -> Image.Image:
    if opened.mode.startswith("I"):
        wide = np.asarray(opened).clip(0, 2**16 - 1)
        opened = Image.fromarray((wide >> 8).astype(np.uint8))
    return opened.convert("L" if channels == 1 else "RGB")


def _common_size(images: Sequence[bytes]) -> tuple[int, int]:
    """Width and height."""
    first: tuple[int, int] | None = None
    for position, opened in enumerate(_all_opened(images)):
        first = first or opened.size
        if opened.size != first:
            raise DataError(
                f"images differ in size: image 0 is {first[0]} x {first[1]}, image {position} is "
                f"{opened.width} x {opened.height}; give a size"
            )
    if first is None:
        raise DataError("there are no images to take the size of; give a size")
    return first


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings: what Pillow only warns of is either checked here or does not concern the pixels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
