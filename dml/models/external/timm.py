"""Networks of timm, with timm's preprocessing and license for them."""

import math
from collections.abc import Callable
from typing import Any, get_args

from dml.config import EncoderConfig, PreprocessingConfig, TimmConfig
from dml.errors import InvalidSetting
from dml.models.backbones import num_features_of
from dml.models.encoder import Encoder
from dml.models.external.base import External, Options, Source, prepared
from dml.models.hub import require_timm
from dml.models.package import contents_of

_INTERPOLATIONS = get_args(PreprocessingConfig.model_fields["interpolation"].annotation)


class TimmSource(Source):
    """`timm:NAME` or `timm:NAME.WEIGHTS`: pooled features as the network's authors pool them."""

    example = "timm:vit_small_patch14_dinov2.lvd142m"

    def read(self, address: str, options: Options, follow: Callable[[str, Options], External]) -> External:
        import timm

        require_timm(address)
        given = options.weights is not None
        backbone = TimmConfig(name=address, pretrained=not given, weights=options.weights)
        config = EncoderConfig(
            backbone=backbone, pooling="own", head="none", dim=num_features_of(backbone, own_pooling=True)
        )
        published = timm.get_pretrained_cfg(address)
        known = timm.data.resolve_data_config(
            pretrained_cfg=timm.models.get_pretrained_cfg(address).to_dict() if published else {}
        )
        preprocessing = prepared(_preprocessing(address, known), options)
        encoder = Encoder(config, channels=preprocessing.channels)
        return External(
            contents_of(encoder, preprocessing),
            source=f"timm:{address}",
            license=(published.license or "") if published and not given else "",
            about={"weights": options.weights.name if options.weights else "published by timm"},
        )


def _preprocessing(name: str, known: dict[str, Any]) -> PreprocessingConfig:
    channels, height, width = known["input_size"]
    if channels != 3:
        raise InvalidSetting(
            f"An embedder must see RGB images; {name} sees {channels} channels. Name another network."
        )
    interpolation = known["interpolation"]
    return PreprocessingConfig(
        resize=max(math.floor(width / known["crop_pct"]), width),
        crop=width,
        height=None if height == width else height,
        crop_mode=known["crop_mode"],
        interpolation=interpolation if interpolation in _INTERPOLATIONS else "bicubic",
        mean=known["mean"],
        std=known["std"],
    )
