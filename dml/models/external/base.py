"""Interface of a source of external networks, and the user's options."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from dml.config import Part, PreprocessingConfig
from dml.faces import DetectorConfig
from dml.models.external.preprocessing import PreprocessingFile
from dml.models.package import Contents


class ImportConfig(Part):
    """What can be set of an import."""

    detector: DetectorConfig = DetectorConfig()


@dataclass(frozen=True)
class Options:
    """The user's options for an embedder's address."""

    weights: Path | None = None
    """A local safetensors or .pth file."""
    preprocessing: Path | None = None
    """A JSON file, see `PreprocessingFile`."""
    license: str = ""
    detector: Path | None = None
    """A face detector's model file; None: images are taken whole."""
    config: ImportConfig = field(default_factory=ImportConfig)


@dataclass(frozen=True)
class External:
    """An external network, ready to become a package."""

    contents: Contents
    source: str
    """Its address, as the user types it, without folders of this machine."""
    license: str = ""
    about: dict[str, Any] = field(default_factory=dict)
    """More for the reader: a weights file's name, versions of libraries."""
    notes: tuple[str, ...] = ()
    """Sentences on what was concluded, and what the user must see to."""


class Source(ABC):
    """A kind of address, KIND:ADDRESS; the kind is the name of the class's file."""

    example: ClassVar[str]
    """As a user types it."""

    @abstractmethod
    def read(self, address: str, options: Options, follow: Callable[[str, Options], External]) -> External:
        """The network at an address.

        Args:
            address: the part after the kind and the colon.
            options: what the user says beside it.
            follow: reads another address, for kinds that hold one.

        Raises:
            InvalidSetting: no such network, or options that it does not take.
            MissingArtifact: weights that are neither on this machine nor can be fetched.
            CorruptArtifact, IncompatibleArtifact: weights that are damaged, or another network's.
        """


def prepared(default: PreprocessingConfig, options: Options) -> PreprocessingConfig:
    """A network's own preprocessing, overridden by the user's file."""
    if options.preprocessing is None:
        return default
    return PreprocessingFile.read(options.preprocessing).over(default)
