"""Decoding: every kind of image that is read, and every one that is not, each with its reason."""

import io
import random
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tamis.embeddings import images
from tamis.embeddings.images import decode, problems
from tamis.errors import DataError

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (9, 9), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (9, 9, 3), dtype=np.uint8)


def encoded(image, kind="PNG", **options):
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png_of_size(width, height, data=b""):
    """A PNG that says its size, whatever its data hold."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def smooth(side):
    """A colour image that lossy formats hardly change."""
    y, x = np.mgrid[:side, :side] * 255 / side
    return np.stack([x, y, (x + y) / 2], -1).astype(np.uint8)


# --- what is read


@pytest.mark.parametrize(
    "image",
    [
        b"P5\n9 9\n255\n" + GREY.tobytes(),
        b"P2\n9 9\n255\n" + b" ".join(str(value).encode() for value in GREY.reshape(-1)),
        *(encoded(GREY, kind) for kind in ("PNG", "BMP", "GIF", "TIFF", "PPM")),
        encoded(GREY, "WEBP", lossless=True),
        encoded(Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(255 - GREY)])),
        encoded(GREY.astype(np.uint16) * 256 + 77),
        encoded(GREY.astype(np.uint16) * 256 + 77, "TIFF"),
        b"P5\n9 9\n65535\n" + (GREY.astype(np.uint16) * 256 + 77).astype(">u2").tobytes(),
    ],
    ids=["pgm", "ascii", "png", "bmp", "gif", "tiff", "ppm", "webp", "alpha", "png16", "tiff16", "pgm16"],
)
def test_grey_images_of_every_format(image):
    pixels = decode([image], None, 1)
    assert (pixels.dtype, pixels.shape) == (np.uint8, (1, 1, 9, 9))
    assert np.array_equal(pixels[0, 0], GREY)
    assert problems([image]) == [None]


@pytest.mark.parametrize(
    "image",
    [
        *(encoded(COLOUR, kind) for kind in ("PNG", "BMP", "TIFF", "PPM")),
        encoded(COLOUR, "WEBP", lossless=True),
        encoded(Image.fromarray(np.dstack([COLOUR, GREY]))),
    ],
    ids=["png", "bmp", "tiff", "ppm", "webp", "alpha"],
)
def test_colour_images_of_every_format(image):
    assert np.array_equal(decode([image], None, None)[0], COLOUR.transpose(2, 0, 1))
    assert problems([image]) == [None]


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_becomes_either(mode, channels):
    kind = {"CMYK": "TIFF", "YCbCr": "JPEG"}.get(mode, "PNG")
    image = encoded(Image.new(mode, (4, 5)), kind)
    assert decode([image], 3, channels).shape == (1, channels, 3, 3)


def test_lossy_formats_are_close():
    image = smooth(32)
    for kind in ("JPEG", "WEBP"):
        pixels = decode([encoded(image, kind, quality=95)], None, None)[0]
        assert np.abs(pixels.astype(int) - image.transpose(2, 0, 1)).mean() < 4


def test_channels_are_grey_if_all_images_are():
    grey, colour = encoded(GREY), encoded(COLOUR)
    assert decode([grey, grey], None, None).shape == (2, 1, 9, 9)
    both = decode([grey, colour], None, None)
    assert both.shape == (2, 3, 9, 9)
    assert np.array_equal(both[0], np.repeat(GREY[None], 3, axis=0))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 20))
def test_grey_in_colour_is_grey_three_times_at_any_size(width, height, size):
    """The pixels encoder counts on it, which learns only block by block whether all images are grey."""
    pixels = np.random.default_rng(width * 41 + height).integers(0, 256, (height, width), dtype=np.uint8)
    image = encoded(pixels, "PPM")
    grey = decode([image], size, 1)
    assert grey.shape == (1, 1, size, size)
    assert np.array_equal(decode([image], size, 3), grey.repeat(3, axis=1))


def test_resizing_is_antialiased():
    stripes = np.tile(np.array([0, 255], np.uint8), (64, 32))
    assert np.abs(decode([encoded(stripes)], 8, 1).astype(int) - 127).max() <= 5
    flat = np.full((31, 17), 93, np.uint8)
    assert (decode([encoded(flat)], 28, 1) == 93).all()


def test_a_size_in_common_need_not_be_square():
    image = encoded(GREY[:5])
    assert np.array_equal(decode([image, image], None, None)[1, 0], GREY[:5])


def test_the_first_frame_of_an_animation():
    frames = [Image.fromarray(np.full((9, 9), value, np.uint8)) for value in (10, 200)]
    image = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (decode([image], None, 1) == 10).all()


def test_no_images():
    assert decode([], 7, None).shape == (0, 1, 7, 7)
    assert decode([], 7, 3).shape == (0, 3, 7, 7)
    with pytest.raises(DataError, match="no images to take the size of; give a size"):
        decode([], None, None)
    assert problems([]) == []


def test_sizes_that_differ_need_one():
    with pytest.raises(DataError, match="image 0 is 9 x 9, image 2 is 9 x 5; give a size"):
        decode([encoded(GREY), encoded(GREY), encoded(GREY[:5])], None, None)
    assert decode([encoded(GREY), encoded(GREY[:5])], 6, None).shape == (2, 1, 6, 6)


@pytest.mark.parametrize(("size", "channels"), [(0, 1), (-1, None), (4, 2), (4, 4)])
def test_sizes_and_channels_that_there_are_not(size, channels):
    with pytest.raises(ValueError, match=f"size is {size} and channels {channels}"):
        decode([encoded(GREY)], size, channels)


# --- what is not


JPEG = encoded(smooth(64), "JPEG", quality=90)
PNG = encoded(COLOUR)
FORMATS = "image is in none of the formats JPEG, PNG"
DAMAGED = "image is damaged or truncated"
KIND = "image has pixels of a kind that is not read"
LARGE = "image has more than 67108864 pixels"
UNREADABLE = {
    "no bytes": (b"", "image is empty"),
    "text": (b"not an image", FORMATS),
    "markup": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', FORMATS),
    "program": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", FORMATS),
    "half a jpeg": (JPEG[: len(JPEG) // 2], DAMAGED),
    "a jpeg without its end": (JPEG[:-2], DAMAGED),
    "half a png": (PNG[: len(PNG) // 2], DAMAGED),
    "a png with a flipped bit": (PNG[:60] + bytes([PNG[60] ^ 1]) + PNG[61:], DAMAGED),
    "a header alone": (JPEG[:30], DAMAGED),
    "half a pgm": (b"P5\n9 9\n255\n" + GREY.tobytes()[:40], DAMAGED),
    "no width": (b"P5\n0 9\n255\n", FORMATS),
    "no height": (png_of_size(9, 0), FORMATS),
    "a bomb": (png_of_size(30_000, 30_000, bytes(1000)), LARGE),
    "a small bomb": (png_of_size(8193, 8192), LARGE),
    "floats": (encoded(GREY.astype(np.float32), "TIFF"), KIND),
    "32 bits": (encoded(GREY.astype(np.int32), "TIFF"), KIND),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_cannot_be_read_says_why_and_where(name):
    image, reason = UNREADABLE[name]
    (found,) = problems([image])
    assert found.startswith(reason)
    for size, channels in ((8, None), (8, 3), (8, 1)):
        with pytest.raises(DataError, match=f"image 1: {reason}"):
            decode([encoded(GREY), image], size, channels)


def test_a_bomb_takes_no_memory(monkeypatch):
    """The size is known before a pixel is decoded."""
    image = encoded(GREY)
    monkeypatch.setattr(images, "MAX_PIXELS", 80)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda _: pytest.fail("decoded"))
    assert problems([image]) == ["image has more than 80 pixels"]


def test_running_out_of_memory_is_no_reason(monkeypatch):
    def fail(self, *args):
        raise MemoryError

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    with pytest.raises(MemoryError):
        problems([PNG])
    with pytest.raises(MemoryError):
        decode([PNG], 4, 1)


def test_what_pillow_warns_of_is_no_warning():
    """Warnings are errors in these tests."""
    exif = encoded(smooth(8), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff")
    assert problems([exif]) == [None]
    palette = Image.fromarray(GREY).convert("P")
    assert decode([encoded(palette, transparency=bytes(range(256)))], None, 3).shape == (1, 3, 9, 9)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"]), st.randoms(use_true_random=False))
def test_damage_gives_pixels_or_a_reason(kind, draw):
    """Nothing else, and what `problems` passes can be decoded."""
    damaged = bytearray(encoded(smooth(16), kind))
    for _ in range(draw.randint(1, 4)):
        damaged[draw.randrange(len(damaged))] = draw.randrange(256)
    damaged = bytes(damaged[: draw.randint(1, len(damaged))]) if draw.random() < 0.3 else bytes(damaged)
    (problem,) = problems([damaged])
    if problem is None:
        assert decode([damaged], 5, None).shape[2:] == (5, 5)
    else:
        with pytest.raises(DataError, match="image 0: image "):
            decode([damaged], 5, None)


def test_the_same_reason_for_every_damage():
    """Reasons are listed in the manifest: they may not be as many as the rows."""
    rng = random.Random(0)
    found = set()
    for _ in range(300):
        damaged = bytearray(PNG)
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        found.update(problems([bytes(damaged)]))
    assert len(found - {None}) <= 6
