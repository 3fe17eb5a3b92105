"""Backbones without their classifiers: images (B, c, H, W) to feature maps (B, C, h, w).

torchvision and timm are imported only to build one of their networks: the import takes seconds.
"""

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor, nn

from dml.config import (
    BackboneConfig,
    Conv4Config,
    TimmConfig,
    TorchvisionConfig,
    TorchvisionNetwork,
    TransformersConfig,
)
from dml.errors import CorruptArtifact, IncompatibleArtifact, InvalidSetting
from dml.models.hub import require_timm, timm_weights, web_file
from dml.models.transformers import TransformersBackbone, build_transformers
from dml.models.weights import read_weights, require_weights_file
from dml.storage import file_digest


class Backbone(NamedTuple):
    module: nn.Module
    num_features: int
    """C, the channels of the feature map (or the length of pooled features)."""


# torchvision's network -> (the module whose output is the feature map, its channels)
_TORCHVISION_TRUNKS = {
    "squeezenet1_1": ("features", 512),
    "googlenet": ("inception5b", 1024),
    "resnet18": ("layer4", 512),
    "resnet50": ("layer4", 2048),
}
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CLASSIFIER_KEYS = ("classifier.", "fc.", "aux1.", "aux2.", "head.")


def build_backbone(
    config: BackboneConfig, *, channels: int, initialize: bool = True, own_pooling: bool = False
) -> Backbone:
    """Build the backbone a configuration names.

    Args:
        config: which one, and where its weights come from.
        channels: of the images, 1 or 3.
        initialise: load the configured weights; False when a package's weights follow anyway.
        own_pooling: pooled features (B, C) as the backbone's authors pool them; timm only.

    Raises:
        MissingArtifact: a weights file that is not there.
        CorruptArtifact: a weights file that is something else, or cut short.
        IncompatibleArtifact: a weights file for another network.
    """
    match config:
        case Conv4Config(width=width):
            return Backbone(_conv4(channels, width), width)
        case TorchvisionConfig():
            backbone = _torchvision(config, pretrained=bool(config.pretrained) and initialize)
        case TimmConfig():
            backbone = _timm(config, channels, config.pretrained and initialize, own_pooling)
        case TransformersConfig():
            model = build_transformers(config.settings)
            backbone = Backbone(model, model.num_features)
    if initialize and config.weights is not None:
        _load_weights(backbone.module, config.weights)
    return backbone


def _conv4(channels: int, width: int) -> nn.Module:
    """Vinyals et al. 2016, arXiv:1606.04080, sec. 4.1: 3x3 convolution, batch norm, ReLU, pool."""
    blocks: list[nn.Module] = []
    for inputs in (channels, width, width, width):
        blocks += [
            nn.Conv2d(inputs, width, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
        ]
    return nn.Sequential(*blocks)


def require_weights(config: BackboneConfig) -> None:
    """Make sure that a backbone's weights are on this machine; download them if possible.

    Raises:
        MissingArtifact: a weights file that is not there, or a hub that cannot be reached.
        CorruptArtifact: a weights file that is something else; one in the hub's cache that is another than
            its name says.
    """
    if config.kind == "conv4":
        return
    if config.weights is not None:
        require_weights_file(config.weights)
    elif config.kind == "torchvision" and config.pretrained:
        weights = _hub_weights(config)
        cached = _cache_path(weights)
        web_file(
            weights.url,
            what=f"The weights {weights} of torchvision:{config.name}",
            give=f"Put the file at {cached}, or name one: --weights FILE, backbone.weights=FILE.",
        )
        digits = cached.stem.rpartition("-")[2]  # torchvision names files by their digests
        if not file_digest(str(cached)).startswith(digits):
            raise CorruptArtifact(
                f"{cached} must have a SHA-256 that begins with {digits}; it has another. Delete the file."
            )
    elif config.kind == "timm" and config.pretrained:
        timm_weights(config.name)


def find_cached_weights(network: TorchvisionNetwork) -> Path | None:
    """A torchvision network's ImageNet weights in torch's cache; None: there are none. Fetches nothing."""
    cached = _cache_path(_hub_weights(TorchvisionConfig(name=network, pretrained=True)))
    return cached if cached.is_file() else None


def _cache_path(weights: Any) -> Path:
    """Where torch keeps the weights of a torchvision entry."""
    return Path(torch.hub.get_dir(), "checkpoints", weights.url.rpartition("/")[2])


def _hub_weights(config: TorchvisionConfig) -> Any:
    """torchvision's entry for the weights a configuration names."""
    from torchvision import models

    there_are = models.get_model_weights(config.name)
    if config.pretrained is True:
        return there_are.DEFAULT
    if config.pretrained not in there_are.__members__:
        raise InvalidSetting(
            f"encoder.backbone.pretrained must be one of {list(there_are.__members__)} for {config.name}; "
            f"got {config.pretrained!r}."
        )
    return there_are[config.pretrained]


def _torchvision(config: TorchvisionConfig, *, pretrained: bool) -> Backbone:
    from torchvision import models

    weights = _hub_weights(config) if pretrained else None
    options = {}
    if config.name == "googlenet" and not pretrained:  # with its weights come the auxiliary classifiers
        options = {"aux_logits": False, "init_weights": False}
    network = models.get_model(config.name, weights=weights, **options)
    last, num_features = _TORCHVISION_TRUNKS[config.name]
    return Backbone(_FeatureMap(network, last), num_features)


class _FeatureMap(nn.Module):
    """A torchvision network up to its feature map; its modules are called in their order, as in all of these.

    torchvision's own feature extractor traces the network, which patches the modules of the whole process: a
    network that another thread ran meanwhile failed.
    """

    def __init__(self, network: nn.Module, last: str) -> None:
        super().__init__()
        modules = dict(network.named_children())
        names = list(modules)
        trunk = names[: names.index(last) + 1]
        steps = OrderedDict((name, modules[name]) for name in trunk)
        if last == "inception5b":
            steps = OrderedDict(input=_GoogLeNetInput(), **steps)
        self.extractor = nn.Sequential(steps)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.extractor(images)
        return features


class _GoogLeNetInput(nn.Module):
    """Images normalized with ImageNet's mean and standard deviation to 0.5 and 0.5, as its weights want them.

    Source: `transform_input` of torchvision.models.googlenet.
    """

    def forward(self, images: Tensor) -> Tensor:
        mean, std = (images.new_tensor(values)[:, None, None] for values in (_IMAGENET_MEAN, _IMAGENET_STD))
        converted: Tensor = (images * std + mean - 0.5) / 0.5
        return converted


def _timm(config: TimmConfig, channels: int, pretrained: bool, own_pooling: bool) -> Backbone:
    import timm

    pooling = {} if own_pooling else {"global_pool": ""}
    require_timm(config.name)
    # Read here and not by timm, which would unpickle a .pth file.
    read = {"state_dict": read_weights(timm_weights(config.name))} if pretrained else None
    network = timm.create_model(
        config.name,
        pretrained=pretrained,
        pretrained_cfg_overlay=read,
        num_classes=0,
        in_chans=channels,
        **pooling,
    )
    # Some networks, such as MobileNetV3, have a convolution between the last features and the classifier.
    return Backbone(network, getattr(network, "head_hidden_size", network.num_features))


def num_features_of(config: BackboneConfig, *, own_pooling: bool) -> int:
    """C, the length of a backbone's pooled features, without its weights."""
    import torch

    with torch.device("meta"):
        return build_backbone(config, channels=3, initialize=False, own_pooling=own_pooling).num_features


def weights_digest(path: Path) -> str:
    """Hex SHA-256 of a weights file; raises MissingArtifact when there is none."""
    require_weights_file(path)
    return file_digest(str(path))


def identify_network(path: Path) -> TorchvisionNetwork:
    """The torchvision network that a weights file belongs to, by the names and shapes of its tensors.

    Raises:
        MissingArtifact, CorruptArtifact: as `read_weights`.
        IncompatibleArtifact: it belongs to none that `TorchvisionConfig` knows.
    """
    weights = read_weights(path)
    networks: tuple[TorchvisionNetwork, ...] = get_args(TorchvisionNetwork)
    for name in networks:
        with torch.device("meta"):
            backbone = _torchvision(TorchvisionConfig(name=name), pretrained=False)
        if not any(_differences(backbone.module, weights)):
            return name
    raise IncompatibleArtifact(
        f"The weights must belong to one of torchvision's {', '.join(networks)}; {path} has "
        f"{len(weights)} tensors such as {sorted(weights)[:3]}. For a network of "
        "timm: --set encoder.backbone.kind=timm --set encoder.backbone.name=NAME "
        "--set encoder.backbone.weights=FILE."
    )


def _trunk(module: nn.Module) -> nn.Module:
    """The module whose names the weights file uses."""
    if isinstance(module, TransformersBackbone):
        return module.model
    return module.extractor if isinstance(module, _FeatureMap) else module


def _differences(module: nn.Module, weights: Mapping[str, Tensor]) -> tuple[list[str], list[str], list[str]]:
    """Names of missing and unexpected tensors, and of tensors with another shape."""
    expected = _trunk(module).state_dict()
    missing = [k for k in expected.keys() - weights.keys() if not k.endswith("num_batches_tracked")]
    unknown = [k for k in weights.keys() - expected.keys() if not k.startswith(_CLASSIFIER_KEYS)]
    reshaped = [k for k in expected.keys() & weights.keys() if expected[k].shape != weights[k].shape]
    return sorted(missing), sorted(unknown), sorted(reshaped)


def _load_weights(module: nn.Module, path: Path) -> None:
    """Strictly load a weights file; entries of the classifier that was cut off are left out."""
    weights = read_weights(path)
    missing, unknown, reshaped = _differences(module, weights)
    if missing or unknown or reshaped:
        raise IncompatibleArtifact(
            f"The weights in {path} must belong to this backbone; missing {missing[:3]}, unknown "
            f"{unknown[:3]}, of another shape {reshaped[:3]}. Name the network these weights were saved from."
        )
    trunk = _trunk(module)
    expected = trunk.state_dict()
    known = {name: tensor for name, tensor in weights.items() if name in expected}
    # PyTorch would copy the integers of a quantized file as they are, without their scale.
    unusual = {
        name: tensor.dtype
        for name, tensor in known.items()
        if expected[name].is_floating_point() and not tensor.is_floating_point()
    }
    if unusual:
        name, kind = next(iter(unusual.items()))
        raise IncompatibleArtifact(
            f"Weights must be floating-point numbers; {len(unusual)} of the {len(known)} tensors in {path} "
            f"are not, such as {name}: {kind}. Name the file that was not quantized."
        )
    trunk.load_state_dict(known, strict=False)


def freeze_batch_norm(module: nn.Module) -> None:
    """Keep running statistics and affine parameters of every batch norm as they are (Roth et al. 2020)."""
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.eval()
            layer.requires_grad_(False)
