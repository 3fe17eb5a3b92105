"""Preprocessing of an external network, from a small JSON file of the user."""

import json
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, PositiveInt

from dml.config import Part, PreprocessingConfig
from dml.config.part import parse
from dml.errors import InvalidSetting

_NUMBER_OR_THREE = float | tuple[float, ...]


class PreprocessingFile(Part):
    """Every key is optional; missing keys keep the value of the network's own description.

    Pixels from 0 to 255 are multiplied by `scale`; then `mean` is taken away, and they are divided by `std`.
    """

    size: PositiveInt | tuple[PositiveInt, PositiveInt] | None = Field(
        None, description="of what the network sees: its side, or (height, width), in pixels"
    )
    resize: int | None = Field(None, gt=0, description="shorter side before the crop; default: `size`")
    crop_mode: Literal["center", "squash", "border"] | None = None
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"] | None = None
    color: Literal["RGB", "BGR", "L"] | None = Field(None, description="L: one channel of grey")
    scale: float = Field(1 / 255, gt=0)
    mean: _NUMBER_OR_THREE | None = Field(None, description="one number, or one for each channel in order")
    std: _NUMBER_OR_THREE | None = None

    @classmethod
    def read(cls, path: Path) -> Self:
        """From a JSON file; raises InvalidSetting where it cannot be read or followed."""
        return parse(cls, read_json_file(path))

    def over(self, default: PreprocessingConfig) -> PreprocessingConfig:
        """A preprocessing with the values of this file."""
        tree = default.model_dump()
        color = self.color or ("L" if default.color == "L" else default.channel_order)
        tree |= {"color": "L" if color == "L" else "RGB", "channel_order": "BGR" if color == "BGR" else "RGB"}
        channels = len(tree["color"])
        for name in ("mean", "std"):
            given = getattr(self, name)
            if given is not None:
                values = given if isinstance(given, tuple) else (given,) * channels
                tree[name] = tuple(value / (255 * self.scale) for value in values)
            elif channels != default.channels:
                raise InvalidSetting(
                    f"{name} must be given for {color} images; got none. Add it to the file."
                )
        if self.size is not None:
            height, width = self.size if isinstance(self.size, tuple) else (self.size, self.size)
            tree |= {"crop": width, "resize": width, "height": None}
            if height != width:
                tree |= {"height": height, "crop_mode": "squash"}
        for name in ("resize", "crop_mode", "interpolation"):
            if getattr(self, name) is not None:
                tree[name] = getattr(self, name)
        return parse(PreprocessingConfig, tree)


def read_json_file(path: Path) -> dict[str, Any]:
    """A JSON object in a user's file; raises InvalidSetting where it cannot be read."""
    try:
        tree = json.loads(path.read_text("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidSetting(
            f"The preprocessing must be a JSON file; {path} cannot be read: {error}."
        ) from error
    if not isinstance(tree, dict):
        raise InvalidSetting(f"The preprocessing must be a JSON object; {path} holds {type(tree).__name__}.")
    return tree
