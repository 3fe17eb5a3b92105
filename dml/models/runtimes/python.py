"""A user's function that embeds images: the package contains its name; a changed source file is an error."""

import importlib.metadata
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from dml.config import Part
from dml.errors import IncompatibleArtifact, InvalidData, InvalidSetting, MissingArtifact
from dml.models.runtimes.base import Runtime, StoredNetwork, require_embeddings
from dml.storage import file_digest

_IMPORTING = ("<frozen importlib", str(Path(importlib.util.__file__).parent))
"""Files whose names begin so import other files."""

_NUMBERS = "biufO"
"""Kinds of NumPy types; objects may be numbers, and are no embeddings if they are not."""

Embed = Callable[[list[NDArray[np.uint8]]], Any]
"""N RGB images (H, W, 3) in, (N, D) numbers out."""


class PythonConfig(Part):
    """The function's name, and its source file."""

    function: str = Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$", description="MODULE:FUNCTION")
    sha256: str = Field(description="of the module's file")
    distribution: str = Field("", description="that installed the module, NAME==VERSION; empty: none")
    dim: int = Field(gt=0, description="length of one embedding")


class SourceFile(NamedTuple):
    """The source file of a function."""

    sha256: str
    distribution: str


class PythonRuntime(Runtime):
    """A function that takes whole images."""

    config: PythonConfig

    @classmethod
    def requirements(cls, settings: Mapping[str, Any]) -> tuple[str, ...]:
        return (settings["distribution"],) if settings["distribution"] else ()

    def __init__(self, stored: StoredNetwork) -> None:
        self.config = PythonConfig.model_validate(stored.settings)
        self.dim, self.preprocessing = self.config.dim, stored.preprocessing
        self.device = torch.device("cpu")  # the function chooses its device itself
        self._function = self._unchanged()

    def _unchanged(self) -> Embed:
        config = self.config
        now = source_file(config.function)
        if now.sha256 != config.sha256:
            versions = f" ({config.distribution} then, {now.distribution} now)" if config.distribution else ""
            raise IncompatibleArtifact(
                f"The file of python:{config.function} must be the one that was imported, SHA-256 "
                f"{config.sha256[:12]}; it has {now.sha256[:12]}{versions}. Bring the former back, or import "
                f"the model again: dml models import python:{config.function} --yes."
            )
        return load_function(config.function)

    def prepare(self, image: Image.Image) -> NDArray[np.uint8]:
        return np.asarray(image)

    def picture(self, prepared: Any) -> Image.Image:
        return Image.fromarray(prepared)

    def embed(self, prepared: Sequence[NDArray[np.uint8]], *, unit_length: bool = True) -> Tensor:
        output = torch.from_numpy(call(self.config.function, self._function, prepared))
        require_embeddings(tuple(output.shape), len(prepared), self.dim)
        return normalize(output, dim=1) if unit_length else output


def call(name: str, function: Embed, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """The function's embeddings, (N, D) float32.

    Raises:
        InvalidData: it gives something else, or raises.
    """
    with _users_code(name):
        output = np.asarray(function(list(images)))
        is_numbers = output.dtype.kind in _NUMBERS
        embeddings = output.astype(np.float32) if is_numbers else output
    if not is_numbers or embeddings.ndim != 2 or len(embeddings) != len(images) or not embeddings.size:
        kind = "" if is_numbers else f" of {output.dtype}"
        raise InvalidData(
            f"python:{name} must give (N, D) real numbers for N images; it gives {embeddings.shape}{kind} "
            f"for {len(images)}."
        )
    return embeddings


def source_file(function: str) -> SourceFile:
    """The digest of a function's file, and the distribution that installed it, without running the module.

    Raises:
        MissingArtifact: there is no such module here.
        InvalidData: importing the package that it is in raises.
        InvalidSetting: it is a module of Python itself.
    """
    module = function.partition(":")[0]
    if module.partition(".")[0] in sys.stdlib_module_names:
        raise InvalidSetting(
            f"python:{function} must be a function that embeds images; {module} is a module of Python "
            "itself. Write one, def embed(images) -> vectors, in a module of your own (docs/pretrained.md)."
        )
    try:
        with _users_code(function):
            spec = importlib.util.find_spec(module)
    except InvalidData as error:
        missing = error.__cause__
        if not isinstance(missing, ModuleNotFoundError) or not module.startswith(missing.name or "-"):
            raise
        spec = None
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise MissingArtifact(
            f"python:{function} needs the module {module}; it cannot be imported here. Put its folder on "
            "PYTHONPATH, on every machine that embeds."
        )
    installed = importlib.metadata.packages_distributions().get(module.partition(".")[0], [])
    version = f"{installed[0]}=={importlib.metadata.version(installed[0])}" if installed else ""
    return SourceFile(file_digest(spec.origin), version)


def load_function(function: str) -> Embed:
    """Import a function.

    Raises:
        MissingArtifact: its module has none of that name.
        InvalidData: importing the module raises.
    """
    module, _, name = function.partition(":")
    with _users_code(function):
        embed: Embed | None = getattr(import_module(module), name, None)
    if not callable(embed):
        raise MissingArtifact(f"The module {module} must have a function {name}; it has none.")
    return embed


@contextmanager
def _users_code(function: str) -> Iterator[None]:
    """What code of the user's raises is the user's mistake; so is `sys.exit`, which would end the command."""
    try:
        yield
    except (Exception, SystemExit) as error:
        text = str(error).strip().partition("\n")[0]
        raise InvalidData(
            f"python:{function} must embed without an error; it raised {type(error).__name__}"
            f"{f': {text}' if text else ''}{_line_of(error)}. Mend it, and repeat the command."
        ) from error


def _line_of(error: BaseException) -> str:
    """Where in the user's own file, not in what that calls; empty for a file that Python cannot read."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename != __file__ and not frame.filename.startswith(_IMPORTING)
    ]
    last = next((frame for frame in reversed(frames) if frame.filename == frames[0].filename), None)
    return "" if last is None else f" ({last.filename}, line {last.lineno})"
