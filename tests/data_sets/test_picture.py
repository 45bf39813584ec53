"""One picture: what every mode becomes, what is refused and why, where crops lie."""

import contextlib
import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from sdjax.data.picture import (
    MAX_PIXELS,
    Unreadable,
    decode,
    decode_depth,
    fit,
    load_square,
    measure,
    open_file,
    to_pixels,
)

EMOJI300 = Path(__file__).parents[1] / "data" / "emoji300"
GREY = Image.fromarray(np.arange(0, 256, 16, dtype=np.uint8).reshape(4, 4))
HALF = Image.merge("LA", [Image.new("L", (4, 4), 0), Image.new("L", (4, 4), 128)])
CLEAR = Image.merge("RGBA", [*Image.new("RGB", (4, 4), "blue").split(), Image.new("L", (4, 4), 0)])
SPOTS = Image.new("P", (4, 4), 1)
SPOTS.putpalette([255, 0, 0, 0, 255, 0])


@pytest.mark.parametrize(
    "name, image, want",
    [
        ("rgb.png", Image.new("RGB", (4, 4), (1, 2, 3)), (1, 2, 3)),
        ("grey.png", GREY, np.asarray(GREY)),
        ("clear.png", CLEAR, 255),
        ("clear.webp", CLEAR, 255),
        ("half.png", HALF, 127),
        ("palette.png", SPOTS, (0, 255, 0)),
        ("palette.gif", SPOTS, (0, 255, 0)),
        ("bit.png", GREY.convert("1", dither=0), np.asarray(GREY) // 128 * 255),
        ("cmyk.jpg", Image.new("CMYK", (4, 4), (0, 255, 255, 0)), (255, 0, 0)),
        ("deep.png", Image.fromarray(np.asarray(GREY) * np.uint16(257)), np.asarray(GREY)),
        ("deep.tiff", Image.fromarray(np.asarray(GREY) * np.uint16(257)), np.asarray(GREY)),
    ],
)
def test_modes(tmp_path, name, image, want):
    image.save(tmp_path / name)
    want = np.broadcast_to(np.asarray(want)[..., None] if np.ndim(want) == 2 else want, (4, 4, 3))
    np.testing.assert_allclose(load_square(tmp_path / name, 4).astype(int), want, atol=2)


def test_transparent_palette_exif_and_crop(tmp_path):
    SPOTS.save(tmp_path / "a.png", transparency=1)
    assert (load_square(tmp_path / "a.png", 4) == 255).all()
    wide = Image.new("RGB", (12, 4), "black")
    wide.paste("white", (0, 0, 4, 4))
    wide.save(tmp_path / "wide.png")
    assert (load_square(tmp_path / "wide.png", 4) == 0).all()  # the middle third
    two = Image.new("L", (4, 4), 0)
    two.paste(255, (0, 0, 4, 2))
    exif = Image.Exif()
    exif[0x112] = 6  # shot with the camera turned: the top is stored at the left
    two.save(tmp_path / "turned.png", exif=exif)
    assert (load_square(tmp_path / "turned.png", 4)[:, 2:] == 255).all()
    assert load_square(EMOJI300 / "00000.webp", 16).shape == (16, 16, 3)


def stored(image, form, **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    file.seek(0)
    return file


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, depth=8, colour=2, data=b""):
    """A PNG of any claimed size."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def mean(opened):
    return np.asarray(decode(opened)).reshape(-1, 3).mean(0).round().astype(int).tolist()


RAMP = np.arange(0, 65536, 4096, dtype=np.uint16).reshape(4, 4)


@pytest.mark.parametrize(
    "name, opened, want",
    [
        (
            "16 bits, big-endian",
            stored(Image.frombytes("I;16B", (4, 4), RAMP.astype(">u2").tobytes()), "TIFF"),
            RAMP >> 8,
        ),
        ("32 bits hold 16", Image.fromarray(RAMP.astype(np.int32)), RAMP >> 8),
        ("negative", Image.fromarray(np.full((4, 4), -5, np.int32)), 0),
        ("float to 1", stored(Image.fromarray((RAMP / 65535).astype(np.float32)), "TIFF"), RAMP / 257),
        ("float to 255", Image.fromarray((RAMP / 257).astype(np.float32)), RAMP / 257),
        ("float without sense", Image.fromarray(np.full((4, 4), np.nan, np.float32)), 0),
        ("16 bits in colour", io.BytesIO(png(1, 1, 16, 2, b"\0" + bytes([200, 1, 100, 2, 50, 3]))), (200, 100, 50)),
        ("16 bits, grey and alpha", io.BytesIO(png(1, 1, 16, 4, b"\0" + bytes([200, 1, 255, 255]))), 200),
        ("YCbCr", stored(Image.new("RGB", (8, 8), (90, 30, 200)), "JPEG", quality=100, subsampling=0), (90, 30, 200)),
        ("HSV", Image.new("RGB", (4, 4), (0, 255, 0)).convert("HSV"), (0, 255, 0)),
        ("premultiplied", Image.new("RGBA", (4, 4), (0, 0, 255, 128)).convert("RGBa"), (127, 127, 255)),
        ("palette and alpha", Image.new("PA", (4, 4), (0, 0)), 255),
        ("one colour is clear", stored(Image.new("RGB", (4, 4), (9, 9, 9)), "PNG", transparency=(9, 9, 9)), 255),
        ("grey, one is clear", stored(Image.new("L", (4, 4), 9), "PNG", transparency=9), 255),
    ],
)
def test_rarer_modes(name, opened, want):
    pixels = np.asarray(decode(opened), int)
    want = np.asarray(want)[..., None] if np.ndim(want) == 2 else want
    np.testing.assert_allclose(pixels, np.broadcast_to(want, pixels.shape), atol=2)


def test_lab():
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    lab = ImageCms.applyTransform(Image.new("RGB", (4, 4), (90, 30, 200)), to_lab)
    np.testing.assert_allclose(mean(stored(lab, "TIFF")), (90, 30, 200), atol=3)


@pytest.mark.parametrize("form, options", [("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {})])
def test_the_first_of_several_pictures_counts(form, options):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue", "green")]
    file = stored(frames[0], form, save_all=True, append_images=frames[1:], **options)
    assert Image.open(file).n_frames == 3
    file.seek(0)
    assert mean(file) == [255, 0, 0]


def test_broken_exif_costs_nothing():
    image = Image.new("RGB", (6, 3), "red")
    content = stored(image, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12" * 40).read()
    assert mean(io.BytesIO(content))[0] > 250 and measure(io.BytesIO(content)) == (3, 6)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_measure_is_what_decode_gives(orientation):
    exif = Image.Exif()
    exif[0x112] = orientation
    file = stored(Image.new("RGB", (6, 3)), "JPEG", exif=exif)
    size = measure(file)
    file = stored(Image.new("RGB", (6, 3)), "JPEG", exif=exif)
    assert size == decode(file).size[::-1] == ((3, 6) if orientation < 5 else (6, 3))


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "zero bytes"),
        (b"<html>404</html>", "of no known format"),
        (b"\0" * 1000, "of no known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n", "of no known format"),  # Ghostscript would run it
        (png(20_000, 20_000), "decompression bomb"),
        (png(9_460, 9_460), "decompression bomb"),
        (png(4, 4, data=b"\0"), ""),
        (stored(NOISE, "PNG").read()[:-200], "truncated"),
        (stored(NOISE, "JPEG").read()[:-200], "truncated"),
        (stored(NOISE, "WEBP").read()[:-200], ""),
        (stored(NOISE, "GIF").read()[:-200], ""),
        (stored(NOISE, "BMP").read()[:-200], "truncated"),
        (stored(NOISE, "TIFF").read()[:-200], ""),
        (stored(NOISE, "AVIF").read()[:-200], ""),
        (stored(NOISE, "PPM").read()[:-200], "truncated"),
    ],
    ids=lambda value: str(value)[:25],
)
def test_why_a_picture_cannot_be_used(content, reason):
    with pytest.raises(Unreadable, match=rf"^not a readable picture \(.*{reason}") as caught:
        decode(io.BytesIO(content))
    assert "\n" not in str(caught.value) and "0x" not in str(caught.value)


def test_the_largest_picture_that_is_taken():
    side = int(MAX_PIXELS**0.5)
    assert measure(io.BytesIO(png(side, side))) == (side, side)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"]), st.data())
def test_damaged_files_are_read_or_refused(form, data):
    content = bytearray(stored(NOISE, form).read())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    content = content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content
    with contextlib.suppress(Unreadable):
        assert fit(decode(io.BytesIO(content)), (4, 4)).shape == (4, 4, 3)


def test_what_cannot_be_opened(tmp_path):
    (tmp_path / "folder.png").mkdir()
    for name, reason in (
        ("nothing.png", "no such picture"),
        ("folder.png", "directory"),
        ("a" * 500, "too long"),
        ("nul\0.png", "null"),
    ):
        with pytest.raises(Unreadable, match=reason):
            open_file(tmp_path / name)


def test_depths_that_cannot_be_read(tmp_path):
    """A zip of several arrays, and a head that promises more than there is room for, are bad rows as any other."""
    np.savez(tmp_path / "several.npz", a=np.zeros((2, 2)), b=np.zeros((2, 2)))
    (tmp_path / "several.npz").rename(tmp_path / "several.npy")
    head = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776, 1099511627776), }"
    head += b" " * (53 - (len(head) - 64)) + b"\n"
    (tmp_path / "huge.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head)
    (tmp_path / "short.npy").write_bytes(b"\x93NUMPY\x01\x00")
    for name, said in (("several", "several arrays in a zip"), ("huge", "not a readable .npy"), ("short", "not a re")):
        with pytest.raises(Unreadable, match=said):
            decode_depth(tmp_path / f"{name}.npy")


def test_a_lack_of_file_handles_is_not_the_picture_s_fault(monkeypatch, tmp_path):
    def no_more(*_):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("builtins.open", no_more)
    with pytest.raises(OSError, match="Too many"):
        open_file(tmp_path / "a.png")


# crops


def index_image(height, width):
    """Pixel (y, x) is (y, x, 0)."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([y, x, 0 * x], -1).astype(np.uint8))


sides = st.integers(1, 60)


@settings(max_examples=200, deadline=None)
@given(sides, sides, sides, sides, st.floats(0, 1), st.floats(0, 1))
def test_the_crop_is_the_largest_and_inside(height, width, target_h, target_w, top, left):
    """Enlarged by nothing and stretched by less than a pixel's rounding."""
    image = index_image(height, width)
    assert fit(image, (target_h, target_w), (top, left)).shape == (target_h, target_w, 3)
    crops = []
    original = Image.Image.crop
    Image.Image.crop = lambda self, box: crops.append(box) or original(self, box)
    try:
        fit(image, (target_h, target_w), (top, left))
    finally:
        Image.Image.crop = original
    x0, y0, x1, y1 = crops[0] if crops else (0, 0, width, height)
    assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
    assert x1 - x0 == width or y1 - y0 == height
    ideal = min(width / target_w, height / target_h)
    assert abs((x1 - x0) - ideal * target_w) <= 0.5 + 1e-6 or x1 - x0 == 1
    assert abs((y1 - y0) - ideal * target_h) <= 0.5 + 1e-6 or y1 - y0 == 1


def test_where_the_crop_lies():
    image = index_image(4, 12)
    for left, first in ((0.0, 0), (0.5, 4), (1.0, 8)):
        assert fit(image, (4, 4), (0.5, left))[0, :, 1].tolist() == list(range(first, first + 4))
    assert fit(image, (4, 4), flip=True)[0, :, 1].tolist() == [7, 6, 5, 4]
    assert fit(index_image(12, 4), (4, 4), (1.0, 0.5))[:, 0, 0].tolist() == [8, 9, 10, 11]


def test_resizing_is_pillow_s_lanczos():
    expected = NOISE.crop((10, 0, 30, 40)).resize((8, 16), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(fit(NOISE, (16, 8)), expected)


def test_to_pixels_spans_minus_one_to_one():
    pixels = to_pixels(np.array([0, 51, 255], np.uint8))
    assert pixels.dtype == np.float32
    np.testing.assert_allclose(pixels, [-1, -0.6, 1], atol=1e-6)


def test_importing_changes_nobody_s_warnings():
    code = """
import sys, warnings
hook = sys.unraisablehook
import sdjax.data.picture, sdjax.data.source, sdjax.training.checkpoint, sdjax.commands.command_line
assert not [one for one in warnings.filters if "PIL" in str(one[3])] and sys.unraisablehook is hook
"""
    subprocess.run([sys.executable, "-c", code], check=True)


TURN = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"  # EXIF: orientation 6
XMP = b"XML:com.adobe.xmp\0\0\0\0\0" + b'<x:xmpmeta tiff:Orientation="6"></x:xmpmeta>'
RAW = b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n%8d\n" % len(TURN) + TURN.hex().encode() + b"\n")
TURNS = {"eXIf": (b"eXIf", TURN), "XMP": (b"iTXt", XMP), "raw profile": (b"zTXt", RAW)}


@pytest.mark.parametrize("late", [False, True], ids=["before the pixels", "behind the pixels"])
@pytest.mark.parametrize("kind", TURNS)
def test_a_png_is_measured_as_it_is_decoded(kind, late, tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (30, 20)).save(buffer, "PNG")
    data, path = buffer.getvalue(), tmp_path / "a.png"
    at = data.index(b"IEND" if late else b"IDAT") - 4
    path.write_bytes(data[:at] + chunk(*TURNS[kind]) + data[at:])
    decoded = decode(open_file(path)).size[::-1]
    assert decoded == (30, 20) and measure(open_file(path)) == decoded
    path.write_bytes(data[:at] + chunk(b"tEXt", b"Comment\0nothing") + data[at:])
    assert measure(open_file(path)) == (20, 30) == decode(open_file(path)).size[::-1]


def test_a_plain_png_is_measured_from_its_head():
    buffer = io.BytesIO()
    Image.effect_noise((600, 500), 80).save(buffer, "PNG")
    data, read = buffer.getvalue(), []

    class Counted(io.BytesIO):
        def read(self, size=-1):
            found = super().read(size)
            read.append(len(found))
            return found

    assert measure(Counted(data)) == (500, 600) and sum(read) < 20_000 < len(data)
