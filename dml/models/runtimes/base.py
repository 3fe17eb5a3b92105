"""Interface of a runtime: it prepares one image at a time, and embeds batches of prepared images."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dml.config import Part, PreprocessingConfig
from dml.config.training import Precision
from dml.errors import InvalidData
from dml.preprocessing import resize_and_crop, to_image, to_tensor


@dataclass(frozen=True)
class StoredNetwork:
    """The local files of a package's network, and the device."""

    folder: Path
    """Of the package's files."""
    settings: Any
    """The package's description of its `encoder`, a JSON tree."""
    preprocessing: PreprocessingConfig
    device: torch.device
    """A preference: not every runtime can choose."""
    precision: Precision
    """As in training; a preference, too."""


class Runtime(ABC):
    """A network, ready to embed."""

    config: Part
    preprocessing: PreprocessingConfig
    device: torch.device
    dim: int
    """D, the length of an embedding."""
    precision: Precision = "float32"
    """What it computes in; never "auto"."""

    @abstractmethod
    def __init__(self, stored: StoredNetwork) -> None: ...

    @classmethod
    def requirements(cls, settings: Mapping[str, Any]) -> tuple[str, ...]:
        """Distributions that a package with these settings needs beside those of every package."""
        return ()

    def prepare(self, image: Image.Image) -> Any:
        """Preprocess an image, decoded in the preprocessing's color; called from several threads."""
        return to_tensor(resize_and_crop(image, self.preprocessing), self.preprocessing)

    def picture(self, prepared: Any) -> Image.Image:
        """The prepared image as a picture to look at, with its colours restored."""
        return to_image(prepared, self.preprocessing)

    @abstractmethod
    def embed(self, prepared: Sequence[Any], *, unit_length: bool = True) -> Tensor:
        """(B, D) float32 embeddings of B prepared images; they may stay on the device.

        Args:
            prepared: by `prepare`.
            unit_length: False: as the network gives them, of any length.
        """


def require_embeddings(shape: tuple[int, ...], num_images: int, dim: int) -> None:
    """Raise InvalidData for what a network of the user's gave for images, if it is not (num_images, dim)."""
    if shape != (num_images, dim):
        raise InvalidData(
            f"An embedder must give one embedding of {dim} numbers for each image; it gives {shape} for "
            f"{num_images} images. Name another output, or cut the network off before its classifier."
        )
