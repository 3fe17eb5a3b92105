"""The deterministic way from an image file's bytes to a tensor; part of every package.

Pillow and torch only: a search must not wait for torchvision.
"""

import io
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from dml.config import PreprocessingConfig
from dml.errors import InvalidData

Encoded = bytes | memoryview
"""An image file's bytes, or a view of them in a memory-mapped table."""


class OversizedImage(InvalidData):
    """More pixels than Pillow agrees to decode, 179 millions: most likely a decompression bomb."""


def image_size(content: Encoded) -> tuple[int, int]:
    """(width, height) in pixels, as the file's header says, without decoding; raises as `decode`."""
    return _open(content).size


def decode(content: Encoded, color: str) -> Image.Image:
    """Decode an image file whole, upright, as RGB or L.

    Args:
        content: the file's bytes, in any format Pillow reads; of an animation the first frame.
        color: "RGB" or "L". Transparency is laid on white, 16-bit grey is scaled to 8 bits.

    Raises:
        InvalidData: the bytes are no image, or a truncated one; OversizedImage, which is one, a bomb.
    """
    image = _open(content)
    try:
        image.load()
        return _flat(ImageOps.exif_transpose(image)).convert(color)
    except Exception as error:  # Pillow's decoders raise whatever the damage hits: struct.error, IndexError
        raise InvalidData(
            f"An image must decode whole; this {image.format} of {len(content)} bytes does not: {error}."
        ) from error


def _open(content: Encoded) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(io.BytesIO(content))
    except Image.DecompressionBombError as error:
        raise OversizedImage(f"An image must have at most 179 million pixels: {error}") from error
    except Exception as error:
        # Without Pillow's own text: it names an address in memory, another one each time.
        raise InvalidData(
            f"An image must be in a format that Pillow reads; these {len(content)} bytes are not, and begin "
            f"with {bytes(content[:8])!r}."
        ) from error


def _flat(image: Image.Image) -> Image.Image:
    """Eight bits a channel, nothing transparent."""
    if image.mode.startswith("I"):
        values = np.asarray(image).clip(0, 0xFFFF).astype(np.uint16)
        return Image.fromarray((values >> 8).astype(np.uint8))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image


def resize_and_crop(image: Image.Image, config: PreprocessingConfig) -> Image.Image:
    """The shorter side to `config.resize` by antialiased bilinear interpolation, then the centre crop.

    Only what the crop shows is computed, so that a long strip costs no more than a square.
    """
    scale = min(image.size) / config.resize
    side = config.crop * scale
    # On the grid of the resized image, so that an image of the final size stays as it is, to the bit.
    left, top = (int((length / scale - config.crop) / 2) * scale for length in image.size)
    box = (left, top, min(left + side, image.width), min(top + side, image.height))
    return image.resize((config.crop, config.crop), Image.Resampling.BILINEAR, box=box)


def to_tensor(image: Image.Image, config: PreprocessingConfig) -> Tensor:
    """An image of the final size as (C, H, W) float32, normalised by the configured mean and deviation."""
    normalised = np.empty((config.channels, image.height, image.width), dtype=np.float32)
    # Plane by plane, which takes half the time of arithmetic along a last axis of three channels.
    for plane, pixels, mean, std in zip(normalised, image.split(), config.mean, config.std, strict=True):
        plane[:] = np.asarray(pixels)
        plane /= 255
        plane -= mean
        plane /= std
    return torch.from_numpy(normalised)


def preprocess(content: Encoded, config: PreprocessingConfig) -> Tensor:
    """An image file's bytes as (C, H, W) float32; raises InvalidData as `decode`."""
    return to_tensor(resize_and_crop(decode(content, config.color), config), config)


def preprocess_batch(contents: Sequence[Encoded], config: PreprocessingConfig) -> Tensor:
    """N image files' bytes as (N, C, H, W) float32, in their order."""
    return torch.stack([preprocess(content, config) for content in contents])
