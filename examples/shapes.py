"""Synthetic images: each class is a random pattern; each image is that pattern, shifted, with noise."""

import torch
from torch import Tensor


def shapes(num_classes: int, images_per_class: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Images and their classes.

    Args:
        num_classes: C.
        images_per_class: K.
        seed: of the patterns; another seed gives other classes.

    Returns:
        (C * K, 1, 32, 32) float images, and (C * K,) int64 class ids.
    """
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.randn(num_classes, 1, 8, 8, generator=generator)
    labels = torch.arange(num_classes).repeat_interleave(images_per_class)
    images = torch.nn.functional.interpolate(patterns, scale_factor=4.0, mode="bilinear")[labels]
    shifts = torch.randint(-6, 7, (len(labels), 2), generator=generator).tolist()
    images = torch.stack(
        [torch.roll(image, shift, (1, 2)) for image, shift in zip(images, shifts, strict=True)]
    )
    return images + 0.5 * torch.randn(images.shape, generator=generator), labels
