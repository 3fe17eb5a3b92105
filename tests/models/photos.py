"""A colourful picture with smooth and sharp parts, in which wrong colours and wrong crops show."""

import io

import numpy as np
from PIL import Image


def photo(width: int, height: int, *, seed: int = 0) -> Image.Image:
    rows, columns = np.mgrid[0:height, 0:width]
    red = 255 * columns / width
    green = 255 * rows / height
    blue = np.where((rows // 16 + columns // 16 + seed) % 2, 200, 20)
    noise = np.random.default_rng(seed).integers(0, 40, (height, width, 3))
    pixels = np.stack([red, green, blue], axis=2) * (215 / 255) + noise
    return Image.fromarray(pixels.astype(np.uint8))


def png_of(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()
