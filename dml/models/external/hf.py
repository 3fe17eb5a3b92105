"""Hugging Face's vision models, from the hub or from a folder."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dml.config import EncoderConfig, PreprocessingConfig, TransformersConfig
from dml.config.part import parse
from dml.errors import CorruptArtifact, InvalidSetting, MissingArtifact
from dml.models.encoder import Encoder
from dml.models.external.base import External, Options, Source, prepared
from dml.models.hub import hub_file
from dml.models.package import contents_of
from dml.models.transformers import read_transformers

_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
_RESAMPLING = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""By Pillow's numbers."""


class HuggingFaceSource(Source):
    """`hf:OWNER/NAME` or `hf:FOLDER`: the image tower of a CLIP, a SigLIP, a DINOv2, a ViT."""

    example = "hf:openai/clip-vit-base-patch32"

    def read(self, address: str, options: Options, follow: Callable[[str, Options], External]) -> External:
        if options.weights is not None:
            raise InvalidSetting(
                f"A model's weights must be in its folder; got --weights {options.weights}. Name the folder: "
                "hf:FOLDER."
            )
        folder = Path(address).expanduser()
        is_here = folder.is_dir()
        if not is_here:
            folder = _fetched(address)
        preprocessing = prepared(_preprocessing(folder), options)
        read = read_transformers(folder)
        config = EncoderConfig(
            backbone=TransformersConfig(settings=read.settings),
            pooling="own",
            head="none",
            dim=read.backbone.num_features,
        )
        encoder = Encoder(config, channels=preprocessing.channels, initialize=False)
        encoder.backbone.load_state_dict(read.backbone.state_dict())
        import transformers

        return External(
            contents_of(encoder, preprocessing),
            source=f"hf:{folder.name if is_here else address}",
            about={"transformers": transformers.__version__},
        )


def _fetched(address: str) -> Path:
    """The folder of the hub's cache with a model's configuration, preprocessing and weights."""
    if address.count("/") != 1 or not all(address.split("/")):
        raise MissingArtifact(
            f"A Hugging Face model must be OWNER/NAME on the hub, or a folder; there is no folder {address}."
        )
    give = "Fetch the repository elsewhere and give its folder: hf:FOLDER."
    for names, what in (
        (("config.json",), "configuration"),
        (_PROCESSORS, "preprocessing"),
        (("model.safetensors",), "weights"),
    ):
        file = hub_file(address, names, what=f"The {what} of hf:{address}", give=give)
    return file.parent


def _preprocessing(folder: Path) -> PreprocessingConfig:
    """The preprocessing of the image processor that was saved with a model."""
    if not (folder / "config.json").is_file():
        raise MissingArtifact(f"A model's folder must hold config.json; {folder} does not.")
    file = next((folder / name for name in _PROCESSORS if (folder / name).is_file()), None)
    if file is None:
        raise MissingArtifact(f"A model's folder must hold {_PROCESSORS[0]}; {folder} does not.")
    try:
        tree = json.loads(file.read_text("utf-8"))
        tree = tree.get("image_processor", tree)
        return parse(PreprocessingConfig, _as_settings(tree))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptArtifact(
            f"{file} must describe an image processor with size, mean and deviation; it does not: {error!r}. "
            "Give --preprocessing FILE.json, or save the processor again."
        ) from error


def _as_settings(tree: dict[str, Any]) -> dict[str, Any]:
    size = tree["size"] if isinstance(tree["size"], dict) else {"shortest_edge": tree["size"]}
    squashed = "shortest_edge" not in size
    width = size.get("width", size.get("shortest_edge"))
    height = size.get("height", width)
    settings: dict[str, Any] = {
        "resize": width,
        "crop": width,
        "crop_mode": "squash" if squashed else "center",
    }
    if height != width:
        settings["height"] = height
    if tree.get("do_center_crop", "crop_size" in tree):
        crop = tree.get("crop_size", width)
        settings["crop"] = crop["height"] if isinstance(crop, dict) else crop
    elif not squashed and tree.get("crop_pct"):  # as ConvNeXt's: resized to more, then cropped to `size`
        settings["resize"] = int(width / tree["crop_pct"])
    factor = tree.get("rescale_factor", 1 / 255) if tree.get("do_rescale", True) else 1.0
    normalized = tree.get("do_normalize", True)
    mean = tree["image_mean"] if normalized else [0.0] * 3
    std = tree["image_std"] if normalized else [1.0] * 3
    settings["mean"] = [value / (255 * factor) for value in mean]
    settings["std"] = [value / (255 * factor) for value in std]
    settings["interpolation"] = _RESAMPLING[tree.get("resample", 2)]
    return settings
