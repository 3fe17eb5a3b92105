"""Hugging Face's vision models as backbones: images (B, 3, H, W) to pooled features (B, C)."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from dml.errors import CorruptArtifact, IncompatibleArtifact, InvalidSetting

# model type -> (model, configuration, arguments of the model); others are what transformers itself chooses
_Class = tuple[str, str, dict[str, Any]]
_CLIP: _Class = ("CLIPVisionModelWithProjection", "CLIPVisionConfig", {})
_SIGLIP: _Class = ("SiglipVisionModel", "SiglipVisionConfig", {})
_WITHOUT_POOLER: _Class = (
    "AutoModel",
    "AutoConfig",
    {"add_pooling_layer": False},
)  # often it was never trained
_CLASSES: dict[str, _Class] = {
    "clip": _CLIP,
    "clip_vision_model": _CLIP,
    "siglip": _SIGLIP,
    "siglip_vision_model": _SIGLIP,
    "vit": _WITHOUT_POOLER,
    "deit": _WITHOUT_POOLER,
}
_OTHER: _Class = ("AutoModel", "AutoConfig", {})


class TransformersBackbone(nn.Module):
    """One vector per image: the projected output, else the pooled one, else that of the first token."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    @property
    def num_features(self) -> int:
        """C, the length of that vector."""
        config: Any = self.model.config
        if type(self.model).__name__ == _CLIP[0]:
            return int(config.projection_dim)
        return int(getattr(config, "hidden_size", None) or config.hidden_sizes[-1])

    def forward(self, images: Tensor) -> Tensor:
        outputs = self.model(pixel_values=images)
        for name in ("image_embeds", "pooler_output"):
            features: Tensor | None = getattr(outputs, name, None)
            if features is not None:
                return features.flatten(1)
        tokens: Tensor = outputs.last_hidden_state
        return tokens[:, 0] if tokens.ndim == 3 else tokens.mean((2, 3))


class VisionModel(NamedTuple):
    """A loaded model, and the configuration that rebuilds it."""

    backbone: TransformersBackbone
    settings: str
    """Its config.json, without where it came from."""


def build_transformers(settings: str) -> TransformersBackbone:
    """The network that a model's config.json describes, with new weights.

    Raises:
        InvalidSetting: it describes no vision model that transformers knows.
    """
    import transformers

    tree = json.loads(settings)
    name, config_name, arguments = _CLASSES.get(tree.get("model_type", ""), _OTHER)
    try:
        if config_name == "AutoConfig":
            config = transformers.AutoConfig.for_model(**tree)
            model = transformers.AutoModel.from_config(config, trust_remote_code=False, **arguments)
        else:
            model = getattr(transformers, name)(getattr(transformers, config_name)(**tree))
    except (ValueError, KeyError, TypeError) as error:
        raise _no_vision_model(tree.get("model_type"), str(error)) from error
    return _checked(model)


def read_transformers(folder: Path) -> VisionModel:
    """A vision model from a folder with its config.json and safetensors; no code in it is run.

    Raises:
        InvalidSetting: no vision model that transformers knows.
        CorruptArtifact, IncompatibleArtifact: its weights cannot be read, or are not all there.
    """
    import transformers

    kind = json.loads((folder / "config.json").read_text("utf-8")).get("model_type", "")
    name, _, arguments = _CLASSES.get(kind, _OTHER)
    try:
        model, read = getattr(transformers, name).from_pretrained(
            folder,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            dtype="float32",
            **arguments,
        )
    except (ValueError, KeyError, TypeError) as error:
        raise _no_vision_model(kind, str(error)) from error
    except OSError as error:
        raise CorruptArtifact(
            f"The model in {folder} must have its weights in safetensors; they cannot be read: "
            f"{_first_line(str(error))}"
        ) from error
    if read["missing_keys"]:
        raise IncompatibleArtifact(
            f"The weights in {folder} must be whole; {type(model).__name__} lacks "
            f"{sorted(read['missing_keys'])[:3]}. Take the folder that the model was saved to."
        )
    tree = {key: value for key, value in model.config.to_dict().items() if not key.startswith("_")}
    return VisionModel(_checked(model), json.dumps(tree, sort_keys=True))


def _checked(model: Any) -> TransformersBackbone:
    if model.main_input_name != "pixel_values":
        raise _no_vision_model(model.config.model_type, f"it takes {model.main_input_name}")
    return TransformersBackbone(model)


def _no_vision_model(kind: object, why: str) -> InvalidSetting:
    return InvalidSetting(
        f"An embedder must be a vision model of transformers, such as CLIP, SigLIP, DINOv2 or ViT; got "
        f"{kind!r}: {_first_line(why)} Name another, or export it to ONNX."
    )


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0].rstrip(".") + "."
