"""A user's function as an embedder: RGB images in, vectors out."""

import re
from collections.abc import Callable

import numpy as np

from dml.config import PreprocessingConfig
from dml.errors import InvalidSetting
from dml.models.external.base import External, Options, Source
from dml.models.package import Contents
from dml.models.runtimes.python import PythonConfig, call, load_function, source_file

_SIDE = 112  # a face step takes a picture of this size for a crop that is aligned already


class PythonSource(Source):
    """`python:MODULE:FUNCTION`; the function is called with a list of (H, W, 3) uint8 arrays."""

    example = "python:MODULE:FUNCTION"

    def read(self, address: str, options: Options, follow: Callable[[str, Options], External]) -> External:
        if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", address) is None:
            raise InvalidSetting(f"A function must be named python:MODULE:FUNCTION; got python:{address}.")
        if options.weights is not None or options.preprocessing is not None:
            raise InvalidSetting(
                f"A function finds its weights and prepares its images by itself; got "
                f"{options.weights or options.preprocessing}. Leave --weights and --preprocessing out."
            )
        file = source_file(address)
        drawn = np.add.outer(np.arange(_SIDE), np.arange(_SIDE)).astype(np.uint8)
        (vector,) = call(address, load_function(address), [np.stack([drawn] * 3, axis=2)])
        config = PythonConfig(
            function=address, sha256=file.sha256, distribution=file.distribution, dim=len(vector)
        )
        preprocessing = PreprocessingConfig(crop_mode="none", mean=(0.0,) * 3, std=(1.0,) * 3)
        return External(
            Contents("python", config.model_dump(mode="json"), preprocessing, {}, config.dim),
            source=f"python:{address}",
            notes=(
                "the function is your own code, which runs wherever this model embeds; its module must be "
                "importable there",
                f"its file has SHA-256 {file.sha256[:12]}; a model of another file is another model",
            ),
        )
