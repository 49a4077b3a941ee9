"""Image files of every kind, as RGB."""

from __future__ import annotations

import struct
import warnings
import zlib
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.images import image_bytes, random_pixels

from fct_infer.errors import FctError, InputError
from fct_infer.images import IMAGE_SUFFIXES, SUFFIXES, decode, read_image
from fct_infer.training.data.folders import decode_rgb, read_folder

GREY = random_pixels(3, channels=1)[..., 0]
COLOUR = random_pixels(4)
ALPHA = random_pixels(5, channels=4)
THREE_GREYS = np.repeat(GREY[..., None], 3, axis=2)


def converted(pixels: np.ndarray, mode: str, image_format: str, **options: object) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, image_format, **options)
    return buffer.getvalue()


def cmyk() -> tuple[bytes, np.ndarray]:
    inks = random_pixels(6, channels=4)
    buffer = BytesIO()
    Image.frombytes("CMYK", (14, 10), inks.tobytes()).save(buffer, "TIFF")
    light = 255 - inks.astype(int)
    return buffer.getvalue(), light[..., :3] * light[..., 3:] / 255


def tiff_of_bits(bits: int, stored: np.ndarray, photometric: int = 1) -> bytes:
    """A grey TIFF by hand, little-endian, in one strip: Pillow writes neither 12 bits nor white as zero."""
    if bits == 12:  # two values in three bytes
        left, right = stored.reshape(-1, 2).astype(np.uint32).T
        body = np.stack([left >> 4, (left & 15) << 4 | right >> 8, right & 255], 1).astype(np.uint8).tobytes()
    else:
        body = stored.astype("<u2").tobytes()
    height, width = stored.shape
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: height, 279: len(body)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<I", 8 + len(body)) + body + struct.pack("<H", len(tags)) + entries + bytes(4)


def palette(**options: object) -> tuple[bytes, np.ndarray]:
    colours, indices = random_pixels(7, 1, 16)[0], np.random.default_rng(8).integers(0, 16, (10, 14), np.uint8)
    image = Image.frombytes("P", (14, 10), indices.tobytes())
    image.putpalette(colours.tobytes())
    buffer = BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue(), colours[indices]


MODES = {
    "RGB": (image_bytes(COLOUR), COLOUR),
    "RGB, bmp": (image_bytes(COLOUR, "BMP"), COLOUR),
    "RGB, webp": (image_bytes(COLOUR, "WEBP", lossless=True), COLOUR),
    "RGB, tiff": (image_bytes(COLOUR, "TIFF", compression="tiff_lzw"), COLOUR),
    "RGB, ppm": (image_bytes(COLOUR, "PPM"), COLOUR),
    "RGB, jpeg 2000": (image_bytes(COLOUR, "JPEG2000"), COLOUR),
    "RGBA": (image_bytes(ALPHA), ALPHA[..., :3]),
    "L": (image_bytes(GREY), THREE_GREYS),
    "LA": (image_bytes(np.stack([GREY, ALPHA[..., 3]], 2)), THREE_GREYS),
    "1": (converted(GREY, "1", "PNG", bits=1), np.asarray(Image.fromarray(GREY).convert("1").convert("RGB"))),
    "P": palette(),
    "P with a transparent colour": palette(transparency=3),
    "P with an alpha of each colour": palette(transparency=bytes(range(16))),
    "P, gif": (image_bytes(GREY, "GIF"), THREE_GREYS),
    "CMYK": cmyk(),
    "I;16": (image_bytes(GREY.astype(np.uint16) * 256 + 77), THREE_GREYS),
    "I;16, tiff": (image_bytes(GREY.astype(np.uint16) * 256 + 200, "TIFF"), THREE_GREYS),
    "I;16B, tiff": (image_bytes((GREY.astype(np.uint16) * 256).astype(">u2"), "TIFF"), THREE_GREYS),
    "I;12, tiff": (tiff_of_bits(12, GREY.astype(np.uint16) * 16 + 9), THREE_GREYS),
    "I;16, tiff, white is zero": (tiff_of_bits(16, 65535 - (GREY.astype(np.uint16) * 256 + 9), 0), THREE_GREYS),
    "I;16, jpeg 2000": (image_bytes(GREY.astype(np.uint16) * 256 + 5, "JPEG2000"), THREE_GREYS),
    "I, pgm": (image_bytes(GREY.astype(np.uint16) * 256 + 1, "PPM"), THREE_GREYS),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_becomes_rgb(mode):
    data, wanted = MODES[mode]
    image = decode(data, "x")
    assert image.mode == "RGB"
    assert np.abs(np.asarray(image) - wanted.astype(float)).max() <= (1 if mode == "CMYK" else 0)


def test_a_jpeg_keeps_its_colours():
    smooth = np.asarray(Image.fromarray(random_pixels(2, 3, 4)).resize((64, 48), Image.Resampling.BICUBIC))
    assert np.abs(np.asarray(decode(image_bytes(smooth, "JPEG", quality=98), "x")) - smooth.astype(float)).mean() < 3


@pytest.mark.parametrize(("dtype", "mode"), [(np.int32, "I"), (np.float32, "F")])
def test_numbers_without_a_scale_are_refused(dtype, mode):
    with pytest.raises(InputError, match=rf"x\.tif: holds 32-bit numbers \(mode {mode}\)"):
        decode(image_bytes(GREY.astype(dtype), "TIFF"), "x.tif")


UPRIGHT = {
    1: lambda stored: stored,
    2: np.fliplr,
    3: lambda stored: np.rot90(stored, 2),
    4: np.flipud,
    5: lambda stored: np.swapaxes(stored, 0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(np.swapaxes(stored, 0, 1), 2),
    8: np.rot90,
    9: lambda stored: stored,  # no such orientation
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied_once(orientation, image_format):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if image_format == "WEBP" else {}
    data = image_bytes(COLOUR, image_format, exif=exif.tobytes(), **options)
    assert np.array_equal(np.asarray(decode(data, "x")), UPRIGHT[orientation](COLOUR))


def test_of_an_animation_the_first_frame_counts():
    buffer = BytesIO()
    first, *more = (Image.fromarray(random_pixels(seed)) for seed in range(3))
    first.save(buffer, "WEBP", save_all=True, append_images=more, lossless=True)
    assert np.array_equal(np.asarray(decode(buffer.getvalue(), "x")), np.asarray(first))


def png_that_claims(width: int, height: int) -> bytes:
    """A few dozen bytes whose header promises that many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


BROKEN = {
    "empty": (b"", "is empty"),
    "text": (b"not an image at all\n" * 50, "is not an image of a known format"),
    "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "is not an image of a known format"),
    "only a signature": (b"\x89PNG\r\n\x1a\n", ""),
    "bomb": (png_that_claims(60_000, 60_000), "decompression bomb"),
    "small bomb": (png_that_claims(10_000, 10_000), "10000x10000 pixels, at most 89,478,485"),
    "no pixels": (png_that_claims(0, 5), ""),
    "wrong checksum": (image_bytes(COLOUR)[:20] + b"????" + image_bytes(COLOUR)[24:], ""),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_an_error_that_names_it(kind):
    data, reason = BROKEN[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as most users run it: Pillow's warning is not what stops a bomb
        with pytest.raises(InputError, match=rf"^the\.file: .*{reason}"):
            decode(data, "the.file")


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "JPEG2000", "AVIF"])
def test_a_truncated_file_is_an_error_wherever_it_ends(image_format):
    data = image_bytes(random_pixels(1, 64, 64), image_format)
    for share in (0.02, 0.3, 0.6, 0.9):
        with pytest.raises(InputError, match=r"^the\.file: "):
            decode(data[: int(len(data) * share)], "the.file")


@given(st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"]), st.integers(0, 10**6), st.binary(min_size=1))
@settings(max_examples=150, deadline=None)
def test_damage_is_an_error_or_harmless(image_format, place, damage):
    data = bytearray(image_bytes(COLOUR, image_format))
    place %= len(data)
    data[place : place + len(damage)] = damage[: len(data) - place]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            assert decode(bytes(data), "the.file").mode == "RGB"
        except FctError as error:
            assert str(error).startswith("the.file: ")


@pytest.mark.parametrize("mode", MODES)
def test_training_decodes_as_embedding_does(mode, tmp_path):
    data, _ = MODES[mode]
    (tmp_path / "file").write_bytes(data)
    assert np.array_equal(np.asarray(decode_rgb(tmp_path / "file")), np.asarray(decode(data, "x")))


def test_training_turns_images_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "x.png").write_bytes(image_bytes(COLOUR, exif=exif.tobytes()))
    assert np.array_equal(np.asarray(decode_rgb(tmp_path / "x.png")), UPRIGHT[6](COLOUR))


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_training_refuses_numbers_without_a_scale_too(dtype, tmp_path):
    (tmp_path / "x.tif").write_bytes(image_bytes(GREY.astype(dtype), "TIFF"))
    with pytest.raises(InputError, match=r"x\.tif: holds 32-bit numbers"):
        decode_rgb(tmp_path / "x.tif")


def test_training_lists_every_suffix_that_embedding_lists(tmp_path):
    (tmp_path / "class").mkdir()
    for number, suffix in enumerate(IMAGE_SUFFIXES):
        (tmp_path / "class" / f"{number}{suffix.upper() if number % 2 else suffix}").touch()
    (tmp_path / "class" / "notes.txt").touch()
    assert len(read_folder(tmp_path, 8).labels) == len(IMAGE_SUFFIXES) == sum(map(len, SUFFIXES.values()))


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.png: cannot be read"):
        read_image(tmp_path / "none.png")
    with pytest.raises(InputError, match="is not a regular file"):
        read_image(tmp_path)
