"""Augmentation of training images: a function of the image and (seed, step, index in the global batch).

Pillow's operations with random parameters, the same on any worker and thread.
"""

import math

import numpy as np
from PIL import Image
from torch import Tensor

from dml.config import AugmentationConfig, PreprocessingConfig
from dml.data.dataset import read_rows
from dml.data.mapped import MappedDataset
from dml.errors import InvalidData
from dml.preprocessing import decode, resampling, resize_and_crop, to_tensor

_ASPECT = (3 / 4, 4 / 3)  # of random crops: Szegedy et al. 2015, arXiv:1409.4842, sec. 6
_ATTEMPTS = 10


def training_view(
    mapped: MappedDataset,
    position: int,
    augmentation: AugmentationConfig,
    preprocessing: PreprocessingConfig,
    draw: tuple[int, int, int],
) -> Tensor:
    """An image of a dataset, decoded and augmented.

    Args:
        mapped: the dataset's images.
        position: the image's row.
        augmentation: the random changes.
        preprocessing: final size and normalisation.
        draw: (seed, step, index in the global batch), of the random parameters.

    Returns:
        (C, H, W) float32.

    Raises:
        InvalidData: it does not decode.
    """
    try:
        image = decode(mapped.image(position), preprocessing.color)
    except InvalidData as error:
        id_ = read_rows(mapped.ref, columns=["id"])["id"][position].as_py()
        raise InvalidData(f"Image {id_!r} of {mapped.ref.uri}: {error}") from error
    return augment(image, augmentation, preprocessing, augmentation_rng(*draw))


def augment(
    image: Image.Image,
    augmentation: AugmentationConfig,
    preprocessing: PreprocessingConfig,
    rng: np.random.Generator,
) -> Tensor:
    """One training view of an image.

    Args:
        image: decoded, in the preprocessing's colours.
        augmentation: the random changes.
        preprocessing: final size and normalisation.
        rng: source of the random parameters.

    Returns:
        (C, H, W) float32.
    """
    if augmentation.random_resized_crop is None:
        image = resize_and_crop(image, preprocessing)
    else:
        image = _random_resized_crop(image, augmentation.random_resized_crop, preprocessing, rng)
    if augmentation.horizontal_flip and rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if augmentation.rotation or augmentation.translation or augmentation.scaling:
        image = _random_affine(image, augmentation, rng)
    return to_tensor(image, preprocessing)


def _random_resized_crop(
    image: Image.Image,
    area: tuple[float, float],
    preprocessing: PreprocessingConfig,
    rng: np.random.Generator,
) -> Image.Image:
    """A random crop of the image at the final size, like torchvision's RandomResizedCrop."""
    width, height = image.size
    for _ in range(_ATTEMPTS):
        pixels = width * height * rng.uniform(*area)
        aspect = math.exp(rng.uniform(math.log(_ASPECT[0]), math.log(_ASPECT[1])))
        w, h = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            break
    else:  # no crop of that shape fits: use the largest centred crop that does
        w, h = min(width, round(height * _ASPECT[1])), min(height, round(width / _ASPECT[0]))
        left, top = (width - w) // 2, (height - h) // 2
    return image.resize(preprocessing.size, resampling(preprocessing), box=(left, top, left + w, top + h))


def _random_affine(
    image: Image.Image, augmentation: AugmentationConfig, rng: np.random.Generator
) -> Image.Image:
    """Rotate and zoom about the centre, then shift; pixels from outside get the top left pixel's color."""
    angle = math.radians(rng.uniform(-augmentation.rotation, augmentation.rotation))
    zoom = rng.uniform(*(augmentation.scaling or (1.0, 1.0)))
    shift = rng.uniform(-augmentation.translation, augmentation.translation, 2) * image.size
    cos, sin = math.cos(angle) / zoom, math.sin(angle) / zoom
    x, y = image.width / 2, image.height / 2
    offset_x = x - cos * (x + shift[0]) - sin * (y + shift[1])
    offset_y = y + sin * (x + shift[0]) - cos * (y + shift[1])
    return image.transform(
        image.size,
        Image.Transform.AFFINE,
        (cos, sin, offset_x, -sin, cos, offset_y),
        Image.Resampling.BILINEAR,
        fillcolor=image.getpixel((0, 0)),
    )


def augmentation_rng(seed: int, step: int, index: int) -> np.random.Generator:
    """The random number generator of one image: the `index`-th of a step's global batch."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, step, index))))
