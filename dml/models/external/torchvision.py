"""Networks of torchvision, with torchvision's preprocessing for their weights."""

from collections.abc import Callable

from dml.config import EncoderConfig, PreprocessingConfig, TorchvisionConfig
from dml.config.part import parse
from dml.models.backbones import num_features_of, require_weights
from dml.models.encoder import Encoder
from dml.models.external.base import External, Options, Source, prepared
from dml.models.package import contents_of


class TorchvisionSource(Source):
    """`torchvision:NAME`: the feature map before the classifier, averaged."""

    example = "torchvision:resnet50"

    def read(self, address: str, options: Options, follow: Callable[[str, Options], External]) -> External:
        from torchvision import models

        given = options.weights is not None
        tree = {"name": address, "pretrained": not given, "weights": options.weights}
        backbone = parse(TorchvisionConfig, tree)
        require_weights(backbone)
        published = models.get_model_weights(address)
        # A file is taken for the first that torchvision published, which most papers start from.
        weights = published["IMAGENET1K_V1"] if given else published.DEFAULT
        known = weights.transforms()
        preprocessing = prepared(
            PreprocessingConfig(
                resize=known.resize_size[0],
                crop=known.crop_size[0],
                interpolation=known.interpolation.value,
                mean=tuple(known.mean),
                std=tuple(known.std),
            ),
            options,
        )
        config = EncoderConfig(
            backbone=backbone, head="none", dim=num_features_of(backbone, own_pooling=False)
        )
        return External(
            contents_of(Encoder(config, channels=preprocessing.channels), preprocessing),
            source=f"torchvision:{address}",
            about={"weights": options.weights.name if options.weights else str(weights)},
        )
