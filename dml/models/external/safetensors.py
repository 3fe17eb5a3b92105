"""Weights in a user's file, and the network that they belong to."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from dml.errors import IncompatibleArtifact, InvalidSetting
from dml.models.backbones import identify_network
from dml.models.external.base import External, Options, Source


class SafetensorsSource(Source):
    """`safetensors:FILE@timm:NAME` or `safetensors:FILE@torchvision:NAME`; the file may be a .pth file, too.

    Without a network behind it, the file is taken for that one of `TorchvisionConfig` whose keys it has.
    """

    example = "safetensors:FILE@torchvision:squeezenet1_1"

    def read(self, address: str, options: Options, follow: Callable[[str, Options], External]) -> External:
        if options.weights is not None:
            raise InvalidSetting(
                f"The weights must be named once; got {address} and --weights {options.weights}. Leave one "
                "out."
            )
        parts = re.fullmatch(r"(.+)@((?:timm|torchvision):[^@]+)", address)
        if parts is not None:
            return follow(parts[2], replace(options, weights=Path(parts[1]).expanduser()))
        file = Path(address).expanduser()
        try:
            network = identify_network(file)
        except IncompatibleArtifact as error:
            raise IncompatibleArtifact(f"{error} Or say which: safetensors:{address}@timm:NAME.") from error
        return follow(f"torchvision:{network}", replace(options, weights=file))
