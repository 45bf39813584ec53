"""The invisible watermark of Stable Diffusion's own scripts: bytes in the blue-difference channel of a picture.

    marked = watermark.embed(image)                      # b"StableDiffusionV1"; SD 2 used watermark.V2
    watermark.decode(marked, len(watermark.V1))          # the same bytes, if the picture has enough contrast

It is the method "dwtDct" of the package invisible-watermark 0.2.0, bit for bit. It takes U of OpenCV's 8-bit YUV and
one level of the Haar wavelet. In each 4 x 4 block of the approximation it takes the coefficient of the largest size,
except the first one, and moves it to a quarter (bit 0) or three quarters (bit 1) of its step of 36. The blocks hold the
bits one after the other, and the whole content again and again.

Flaws of the package are kept: two bands of details are swapped on the way back, and results are cut to bytes instead of
rounded. In a smooth block, a coefficient that was made smaller may no longer be the largest, so that another one is
read. Therefore not every picture gives all bits back; the package cannot read more of them either.
"""

import numpy as np
from PIL import Image

from sdjax.checks import is_whole
from sdjax.errors import SdjaxError
from sdjax.image.pixels import whole_picture

V1, V2 = b"StableDiffusionV1", b"SDV2"
STEP, BLOCK, PIXELS = 36, 4, 256 * 256
HALF = 0.7071067811865476  # the Haar filter's weight, 1 / sqrt(2), as PyWavelets has it


def embed(image: Image.Image, content: bytes = V1) -> Image.Image:
    """Returns `image` as RGB with the bytes `content` in it.

    SdjaxError: no content, or a picture of fewer than 65,536 pixels (256 x 256), which the package refuses too.
    """
    if not isinstance(content, bytes) or not content:
        raise SdjaxError(f"content {content!r}: at least one byte")
    rgb = _pixels(image)
    luma, u, v = _to_yuv(rgb)
    height, width = (side // 4 * 4 for side in u.shape)
    approximation, across, down, both = _haar(u[:height, :width])

    blocks, places, values = _largest(approximation)
    bits = np.resize(np.unpackbits(np.frombuffer(content, np.uint8)), len(blocks))
    moved = (np.abs(values) // STEP + 0.25 + 0.5 * bits) * STEP
    blocks[np.arange(len(blocks)), places] = np.where(values >= 0, moved, -moved)
    approximation = _unblock(blocks, approximation)

    u[:height, :width] = _inverse_haar(approximation, down, across, both).astype(np.int64).astype(np.uint8)
    return Image.fromarray(_to_rgb(luma, u, v))


def decode(image: Image.Image, length: int) -> bytes:
    """Returns the `length` bytes that a picture holds. Each bit is the majority of its blocks.

    SdjaxError: the picture is too small for `embed`, or has fewer blocks than bits.
    """
    if not is_whole(length, 1):
        raise SdjaxError(f"length {length!r}: a whole number of bytes from 1 on")
    u = _to_yuv(_pixels(image))[1]
    _, _, values = _largest(_haar(u[: len(u) // 4 * 4, : u.shape[1] // 4 * 4])[0])
    found, bits = np.abs(values) % STEP > 0.5 * STEP, 8 * length
    if len(found) < bits:
        raise SdjaxError(f"length {length}: the picture has {len(found)} blocks, {bits} are needed")
    said = [found[i::bits].mean() for i in range(bits)]
    return np.packbits(np.array(said) * 255 > 127).tobytes()


def _pixels(image: Image.Image) -> np.ndarray:
    image = whole_picture(image)
    if image.width * image.height < PIXELS:
        raise SdjaxError(
            f"image of {image.width} x {image.height} pixels: a watermark takes at least {PIXELS}, 256 x 256"
        )
    return np.asarray(image.convert("RGB"))


def _largest(approximation: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the blocks [N, 16] row by row, and the place and the value of each block's largest coefficient, leaving
    out its first one."""
    rows, columns = (side // BLOCK for side in approximation.shape)
    whole = approximation[: rows * BLOCK, : columns * BLOCK]
    blocks = whole.reshape(rows, BLOCK, columns, BLOCK).swapaxes(1, 2).reshape(-1, BLOCK * BLOCK)
    places = np.argmax(np.abs(blocks[:, 1:]), axis=1) + 1
    return blocks, places, blocks[np.arange(len(blocks)), places]


def _unblock(blocks: np.ndarray, approximation: np.ndarray) -> np.ndarray:
    rows, columns = (side // BLOCK for side in approximation.shape)
    whole = blocks.reshape(rows, columns, BLOCK, BLOCK).swapaxes(1, 2).reshape(rows * BLOCK, columns * BLOCK)
    out = approximation.copy()
    out[: rows * BLOCK, : columns * BLOCK] = whole
    return out


def _haar(x: np.ndarray) -> tuple[np.ndarray, ...]:
    """Returns one level in float64: the approximation, then the details of rows, of columns and of both (PyWavelets'
    cA, cH, cV, cD)."""
    x = HALF * x.astype(np.float64)
    low, high = x[0::2] + x[1::2], x[0::2] - x[1::2]
    low, high = HALF * low, HALF * high
    return (
        low[:, 0::2] + low[:, 1::2],
        high[:, 0::2] + high[:, 1::2],
        low[:, 0::2] - low[:, 1::2],
        high[:, 0::2] - high[:, 1::2],
    )


def _inverse_haar(approximation, rows, columns, both) -> np.ndarray:
    def join(low, high, axis):
        low, high = HALF * low, HALF * high
        pair = np.stack([low + high, low - high], axis + 1)
        shape = list(low.shape)
        shape[axis] *= 2
        return pair.reshape(shape)

    return join(join(approximation, columns, 1), join(rows, both, 1), 0)


# OpenCV's 8-bit YUV (imgproc, color_yuv): weights of 2^14, rounded


def _scaled(x: np.ndarray) -> np.ndarray:
    return (x + (1 << 13)) >> 14


def _to_yuv(rgb: np.ndarray) -> list[np.ndarray]:
    r, g, b = (rgb[..., i].astype(np.int32) for i in range(3))
    luma = _scaled(4899 * r + 9617 * g + 1868 * b)
    chroma = lambda x, weight: np.clip(_scaled(weight * (x - luma) + (128 << 14)), 0, 255)
    return [luma.astype(np.uint8), chroma(b, 8061).astype(np.uint8), chroma(r, 14369).astype(np.uint8)]


def _to_rgb(luma: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    luma, u, v = luma.astype(np.int32), u.astype(np.int32) - 128, v.astype(np.int32) - 128
    channels = luma + _scaled(18678 * v), luma + _scaled(-6472 * u - 9519 * v), luma + _scaled(33292 * u)
    return np.clip(np.stack(channels, -1), 0, 255).astype(np.uint8)
