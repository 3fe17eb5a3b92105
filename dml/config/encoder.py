"""Configuration of the encoder: backbone, pooling and head."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from dml.config.part import Part


class Conv4Config(Part):
    """Four blocks of convolution, batch norm, ReLU and pooling, for 28-pixel images."""

    kind: Literal["conv4"] = "conv4"
    width: int = Field(64, gt=0, description="channels of every block")


TorchvisionNetwork = Literal["squeezenet1_1", "googlenet", "resnet18", "resnet50"]


class TorchvisionConfig(Part):
    """A torchvision classification network without its classifier."""

    kind: Literal["torchvision"] = "torchvision"
    name: TorchvisionNetwork = "squeezenet1_1"
    pretrained: bool | Literal["IMAGENET1K_V1", "IMAGENET1K_V2"] = Field(
        False, description="fetch ImageNet weights from the hub; True: torchvision's latest"
    )
    weights: Path | None = Field(
        None, description="a local safetensors or .pth file in torchvision's key names"
    )


class TimmConfig(Part):
    """Any backbone of timm."""

    kind: Literal["timm"] = "timm"
    name: str = "resnet50"
    pretrained: bool = Field(False, description="fetch weights from the hub")
    weights: Path | None = Field(None, description="a local safetensors or .pth file in timm's key names")


class TransformersConfig(Part):
    """A vision model of Hugging Face; made by `dml models import hf:NAME`, then a start for training."""

    kind: Literal["transformers"] = "transformers"
    settings: str = Field(description="the model's config.json, as text")
    weights: Path | None = Field(
        None, description="a local safetensors or .pth file in the model's key names"
    )


BackboneConfig = Annotated[
    Conv4Config | TorchvisionConfig | TimmConfig | TransformersConfig, Field(discriminator="kind")
]


class EncoderConfig(Part):
    """Backbone, pooling and a linear head onto the unit sphere."""

    backbone: BackboneConfig = Conv4Config()
    pooling: Literal["avg", "max", "avg+max", "gem", "own"] = Field(
        "avg", description="own: the timm backbone's pooling, such as CLS"
    )
    head: Literal["linear", "none"] = Field(
        "linear", description="none: pooled features are the embedding, and `dim` is their number"
    )
    dim: int = Field(128, gt=0, description="length of the embedding")
    layer_norm: bool = Field(False, description="normalise pooled features before the head")
    dropout: float = Field(0.0, ge=0, lt=1, description="fraction of pooled features dropped in training")
    freeze_batch_norm: bool = Field(False, description="keep the backbone's running statistics and affine")
    unit_length: bool = Field(
        True,
        description="normalise embeddings in training; false: a classification loss sees their lengths. "
        "Outside training they always have unit length",
    )
