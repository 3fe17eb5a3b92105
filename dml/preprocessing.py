"""The deterministic way from an image file's bytes to a tensor; part of every package.

Pillow and torch only: a search must not wait for torchvision. An ingest only decodes, and must not wait for
torch, so that is imported where a tensor is made.
"""

import io
import re
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from dml.config import MAX_PIXELS, PreprocessingConfig
from dml.errors import InvalidData

if TYPE_CHECKING:
    from torch import Tensor

Encoded = bytes | memoryview
"""An image file's bytes, or a view of them in a memory-mapped table."""

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM")
"""What is decoded: pictures. Pillow also reads PostScript, which is a program, and much that is rare."""

_SIGNATURES = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|BM|II[*+]\0|MM\0[*+]|RIFF.{4}WEBP|.{4}ftyp(avif|avis|mif1)"
    rb"|\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51|P[1-6fF]\s",
    re.DOTALL,
)
SIGNATURE_BYTES = 16

_OTHER_KINDS = {
    rb"version https://": "a Git LFS pointer (git lfs pull fetches the image)",
    rb"\s*<": "a web page or SVG",
    rb".{4}ftyp(?!avif|avis)": "HEIC or a film",
    rb"%!PS|%PDF": "a document",
}
_STRIP_ROWS = 256

# Pillow looks at pictures within files, too: at twice this it refuses, and between it would warn of what is
# refused here.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class UnreadableImage(InvalidData):
    """Bytes that do not become a tensor."""

    reason = "not an image"


class OversizedImage(UnreadableImage):
    """More pixels than are decoded: a small file of these takes all memory."""

    reason = "too many pixels"


class DamagedImage(UnreadableImage):
    """An image that begins well and does not decode whole."""

    reason = "truncated or damaged"


class AmbiguousPixels(UnreadableImage):
    """Numbers that may mean more than one brightness."""

    reason = "ambiguous pixel values"


def has_signature(head: bytes) -> bool:
    """Whether a file begins as one of the formats does, by its first SIGNATURE_BYTES."""
    return _SIGNATURES.match(head) is not None


def image_size(content: Encoded, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """(width, height) in pixels, as the file's header says, without decoding; raises as `decode`."""
    return _open(content, max_pixels).size


def image_format(content: Encoded, max_pixels: int = MAX_PIXELS) -> str:
    """A file's format and colour mode, as `JPEG RGB`, without decoding; raises as `decode`."""
    image = _open(content, max_pixels)
    return f"{image.format} {image.mode}"


def decode(content: Encoded, color: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode an image file whole, upright, as RGB or L.

    Args:
        content: the file's bytes, in one of FORMATS; of an animation the first frame.
        color: "RGB" or "L". Transparency is laid on white, 16-bit grey is scaled to 8 bits, and so are real
            numbers from 0 to 1.
        max_pixels: more are refused by the header, before anything is decoded.

    Raises:
        UnreadableImage: no image, OversizedImage, DamagedImage, or AmbiguousPixels.
    """
    image = _open(content, max_pixels)
    try:
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        flat = _flat(image)
        return flat if flat.mode == color else flat.convert(color)
    except (UnreadableImage, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise whatever the damage hits: struct.error, IndexError
        raise DamagedImage(
            f"An image must decode whole; this {image.format} of {len(content)} bytes does not: {error}."
        ) from error


def _open(content: Encoded, max_pixels: int) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
    except Image.DecompressionBombError as error:
        said = re.search(r"\d+ pixels", str(error))
        got = said.group() if said else "more"
        raise OversizedImage(
            f"An image must have at most {max_pixels} pixels; got {got}. Resize it."
        ) from error
    except Exception as error:
        # Without Pillow's own text: it names an address in memory, another one each time.
        head = bytes(content[:SIGNATURE_BYTES])
        known = (what for beginning, what in _OTHER_KINDS.items() if re.match(beginning, head, re.DOTALL))
        kind = next(known, None)
        if kind is None and has_signature(head):
            raise UnreadableImage(
                f"An image must have a header that can be read; these {len(content)} bytes begin as an "
                f"image, {head[:8]!r}, and do not go on as one. Get the file anew, or save it without "
                "metadata."
            ) from error
        raise UnreadableImage(
            f"An image must be {', '.join(FORMATS[:-1])} or {FORMATS[-1]}; these {len(content)} bytes are "
            f"{kind or 'not'}, and begin with {head[:8]!r}."
        ) from error
    if image.width * image.height > max_pixels:
        raise OversizedImage(
            f"An image must have at most {max_pixels} pixels; got {image.width} x {image.height}. Resize it."
        )
    return image


def _flat(image: Image.Image) -> Image.Image:
    """Eight bits a channel, nothing transparent."""
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_eight_bits(np.asarray(image), image.mode))
    if image.has_transparency_data:
        return _on_white(image)
    return image


def _on_white(image: Image.Image) -> Image.Image:
    """Without transparency, as RGB; in strips, since the whole in RGBA takes four times the memory."""
    flat = Image.new("RGB", image.size)
    for top in range(0, image.height, _STRIP_ROWS):
        layer = image.crop((0, top, image.width, min(top + _STRIP_ROWS, image.height))).convert("RGBA")
        flat.paste(
            Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB"), (0, top)
        )
    return flat


def _eight_bits(values: NDArray[np.generic], mode: str) -> NDArray[np.uint8]:
    """Grey values as Pillow's modes hold them: I;16 has 16 bits, I has 32 and F is real."""
    if mode.startswith("I;16"):
        return (values.astype(np.uint16) >> 8).astype(np.uint8)
    least, most = values.min(), values.max()
    if mode == "F" and least >= 0 and most <= 1:
        return (values * 255).round().astype(np.uint8)
    if least >= 0 and most <= 0xFF:
        return values.round().astype(np.uint8)
    if mode == "I" and least >= 0 and most <= 0xFFFF:
        return (values.astype(np.uint16) >> 8).astype(np.uint8)
    wanted = "real numbers from 0 to 1 or 0 to 255" if mode == "F" else "whole numbers from 0 to 65535"
    raise AmbiguousPixels(f"Grey values must be {wanted}; got {least} to {most}. Scale them.")


def resize_and_crop(image: Image.Image, config: PreprocessingConfig) -> Image.Image:
    """The image covering `config.resize` (both sides of it, where it squashes), then the centre crop.

    Antialiased. Only what the crop shows is computed, so that a long strip costs no more than a square.
    """
    if config.crop_mode == "none":
        return image
    resized = (config.resize * side / config.crop for side in config.size)
    scales = [length / side for length, side in zip(image.size, resized, strict=True)]
    if config.crop_mode == "border":
        return _bordered(image, config, max(scales))
    if config.crop_mode == "center":
        scales = [min(scales)] * 2
    # On the grid of the resized image, so that an image of the final size stays as it is, to the bit.
    left, top = (
        int((length / scale - side) / 2) * scale
        for length, scale, side in zip(image.size, scales, config.size, strict=True)
    )
    right, bottom = (
        min(start + side * scale, length)
        for start, scale, side, length in zip((left, top), scales, config.size, image.size, strict=True)
    )
    return image.resize(config.size, resampling(config), box=(left, top, right, bottom))


def _bordered(image: Image.Image, config: PreprocessingConfig, scale: float) -> Image.Image:
    """The image made smaller by a factor, in the middle of the final size; around it the mean colour."""
    mean = config.mean[::-1] if config.channel_order == "BGR" else config.mean
    fill = tuple(round(255 * value) for value in mean)
    whole = Image.new(config.color, config.size, fill[0] if len(fill) == 1 else fill)
    resized = image.resize([max(round(length / scale), 1) for length in image.size], resampling(config))
    left, top = (round((side - length) / 2) for side, length in zip(config.size, resized.size, strict=True))
    whole.paste(resized, (left, top))
    return whole


def resampling(config: PreprocessingConfig) -> Image.Resampling:
    """Pillow's name of the configured interpolation."""
    return Image.Resampling[config.interpolation.upper()]


def to_tensor(image: Image.Image, config: PreprocessingConfig) -> "Tensor":
    """An image of the final size as (C, H, W) float32, normalised by the configured mean and deviation."""
    normalized = np.empty((config.channels, image.height, image.width), dtype=np.float32)
    planes = image.split()[::-1] if config.channel_order == "BGR" else image.split()
    # Plane by plane, which takes half the time of arithmetic along a last axis of three channels.
    for plane, pixels, mean, std in zip(normalized, planes, config.mean, config.std, strict=True):
        plane[:] = np.asarray(pixels)
        plane /= 255
        plane -= mean
        plane /= std
    import torch

    return torch.from_numpy(normalized)


def to_image(tensor: "Tensor", config: PreprocessingConfig) -> Image.Image:
    """What a network sees, as a picture for people: the inverse of `to_tensor`."""
    mean, std = (np.reshape(values, (-1, 1, 1)) for values in (config.mean, config.std))
    pixels = np.rint((tensor.numpy() * std + mean) * 255).clip(0, 255).astype(np.uint8)
    planes = [Image.fromarray(plane) for plane in pixels]
    return Image.merge(config.color, planes[::-1] if config.channel_order == "BGR" else planes)


def preprocess(content: Encoded, config: PreprocessingConfig) -> "Tensor":
    """An image file's bytes as (C, H, W) float32; raises as `decode`."""
    return to_tensor(resize_and_crop(decode(content, config.color), config), config)


def preprocess_batch(contents: Sequence[Encoded], config: PreprocessingConfig) -> "Tensor":
    """N image files' bytes as (N, C, H, W) float32, in their order."""
    import torch

    return torch.stack([preprocess(content, config) for content in contents])
