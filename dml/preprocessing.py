"""The deterministic way from an image file's bytes to a tensor; part of every package.

Pillow and torch only: a search must not wait for torchvision.
"""

import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from dml.config import PreprocessingConfig
from dml.errors import InvalidData

# The size of an image is checked where it is trusted (ingest's max_pixels); Pillow's own guard only warns.
Image.MAX_IMAGE_PIXELS = None
_BYTE_MAX = 255.0


def decode(content: bytes, color: str) -> Image.Image:
    """Decode an image file whole, upright, as RGB or L.

    Args:
        content: the file's bytes, in any format Pillow reads.
        color: "RGB" or "L". Transparency is laid on white, 16-bit grey is scaled to 8 bits.

    Raises:
        InvalidData: the bytes are no image, or a truncated one.
    """
    try:
        with Image.open(io.BytesIO(content)) as opened:
            opened.load()
            image = ImageOps.exif_transpose(opened)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise InvalidData(
            f"An image must decode whole; these {len(content)} bytes do not: {error}."
        ) from error
    if image.mode.startswith("I;16") or image.mode == "I":
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image.convert(color)


def resize_and_crop(image: Image.Image, config: PreprocessingConfig) -> Image.Image:
    """The shorter side to `config.resize` by antialiased bilinear interpolation, then the centre crop."""
    scale = config.resize / min(image.size)
    width, height = (max(round(side * scale), config.crop) for side in image.size)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - config.crop) // 2, (height - config.crop) // 2
    return image.crop((left, top, left + config.crop, top + config.crop))


def to_tensor(image: Image.Image, config: PreprocessingConfig) -> Tensor:
    """An image of the final size as (C, H, W) float32, normalised by the configured mean and deviation."""
    # A copy: torch warns of memory it must not write to.
    pixels = torch.from_numpy(np.array(image, dtype=np.float32, copy=True))
    pixels = pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
    mean, std = (torch.tensor(values)[:, None, None] for values in (config.mean, config.std))
    return (pixels / _BYTE_MAX - mean) / std


def preprocess(content: bytes, config: PreprocessingConfig) -> Tensor:
    """An image file's bytes as (C, H, W) float32; raises InvalidData as `decode`."""
    return to_tensor(resize_and_crop(decode(content, config.color), config), config)


def preprocess_batch(contents: Sequence[bytes], config: PreprocessingConfig) -> Tensor:
    """N image files' bytes as (N, C, H, W) float32, in their order."""
    return torch.stack([preprocess(content, config) for content in contents])
