"""Published numbers, and when they are comparable with ours: same data, same first weights, same training.

All rows were read in the sources named. What a source says of the epoch it reports is in `chosen`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dml.config import ExperimentConfig
from dml.data.dataset import read_rows
from dml.presets import experiment
from dml.refs import DatasetRef, SplitSize
from dml.training.loop import decisive_settings

IMAGENET = "IMAGENET1K_V1"
"""The weights that every ResNet50 of these sources starts from, as torchvision names them."""
SIZES = {
    "cub200": {"train": SplitSize(rows=5864, classes=100), "test": SplitSize(rows=5924, classes=100)},
    "cars196": {"train": SplitSize(rows=8054, classes=98), "test": SplitSize(rows=8131, classes=98)},
    "sop": {"train": SplitSize(rows=59551, classes=11318), "test": SplitSize(rows=60502, classes=11316)},
    "in-shop": {"train": SplitSize(rows=25882, classes=3997), "test": SplitSize(rows=26830, classes=3985)},
}
_LEAST_SIDE = 224
"""Images whose shorter side is less were shrunk: the three datasets' medians are well above the crop."""
_ON_TEST = "the epoch was chosen by its Recall@1 on the test set; ours is the last step"
_UNSAID = "how the epoch was chosen is not said; ours is the last step"


@dataclass(frozen=True)
class Published:
    """A row of a published table."""

    dataset: str
    loss: str
    mining: str | None
    metrics: Mapping[str, float]
    source: str
    network: str
    preset: str | None
    """Which trains in the same way; None: none does."""
    chosen: str = _UNSAID
    differs: str | None = None
    """What the preset does otherwise."""

    @property
    def name(self) -> str:
        return self.loss if self.mining is None else f"{self.loss}/{self.mining}"


_UNIT_N_PAIR = "inner products here are of unit vectors, theirs of vectors of any length"
_BY_CHANCE = "every image comes once per epoch here; their batches are drawn by chance"
_CONFUSEZIUS: dict[tuple[str, str | None], tuple[str, str | None]] = {
    ("margin", "distance_weighted"): ("margin-distance", None),
    ("triplet_margin", "soft_hard"): ("triplet-softhard", None),
    ("n_pair", None): ("n-pair", _UNIT_N_PAIR),
    ("proxy_nca", None): ("proxy-nca", _BY_CHANCE),
}
# NMI, F1, Recall@1 in percent, in the order of _CONFUSEZIUS.
_CONFUSEZIUS_NUMBERS: dict[str, list[tuple[float, float, float] | None]] = {
    "cub200": [(68.2, 38.7, 63.4), (66.2, 35.5, 61.2), (65.4, 33.8, 59.0), (68.1, 38.1, 64.0)],
    "cars196": [(67.2, 37.6, 79.3), (64.4, 32.4, 75.4), (62.3, 30.1, 69.5), (66.3, 35.8, 80.0)],
    "sop": [(89.6, 34.9, 76.1), (89.1, 33.7, 74.3), (88.8, 31.1, 70.9)],
    "in-shop": [(88.2, 27.7, 84.5), None, (88.0, 27.6, 80.9)],
}
_HIER = "Kim et al. 2023 (HIER), table of published results"
_PROXY_ANCHOR = "Proxy-Anchor's repository, README"
# Recall@1 in percent on CUB200-2011, CARS196, SOP, In-Shop.
_RECALLS: list[tuple[str, str, str, tuple[float | None, ...], tuple[str | None, ...]]] = [
    (
        "proxy_anchor",
        "ResNet50, 512 dimensions",
        _PROXY_ANCHOR,
        (69.9, 87.7, None),
        ("cub200-proxy-anchor", "cars196-proxy-anchor", None),
    ),
    ("proxy_anchor", "BN-Inception, 512 dimensions", _PROXY_ANCHOR, (69.1, 86.4, 79.2, 91.9), (None,) * 4),
    ("proxy_anchor", "BN-Inception, 512 dimensions", _HIER, (68.4, 86.1, 79.1), (None, None, None)),
    ("multi_similarity", "BN-Inception, 512 dimensions", _HIER, (65.7, 84.1, 78.2), (None, None, None)),
    ("soft_triple", "BN-Inception, 512 dimensions", _HIER, (65.4, 84.5, 78.6), (None, None, None)),
    ("normalized_softmax", "ResNet50, 128 dimensions", _HIER, (56.5, 81.6, 75.2), (None, None, None)),
    ("normalized_softmax", "ResNet50, 512 dimensions", _HIER, (61.3, 84.2, 78.2), (None, None, None)),
    ("proxy_nca_plus_plus", "ResNet50, 512 dimensions", _HIER, (69.0, 86.5, 80.7), (None, None, None)),
]


def _rows() -> Iterator[Published]:
    for dataset, numbers in _CONFUSEZIUS_NUMBERS.items():
        for ((loss, mining), (preset, differs)), numbers_of_row in zip(
            _CONFUSEZIUS.items(), numbers, strict=False
        ):  # Proxy-NCA has no row for SOP and In-Shop
            if numbers_of_row is None:
                continue
            metrics = dict(zip(("nmi", "pairwise_f1", "recall_at_1"), numbers_of_row, strict=True))
            yield Published(
                dataset,
                loss,
                mining,
                {name: round(value / 100, 4) for name, value in metrics.items()},
                "Confusezius' Deep-Metric-Learning-Baselines, README",
                "ResNet50, 128 dimensions",
                f"{dataset}-{preset}",
                _ON_TEST,
                differs,
            )
    for loss, network, source, recalls, presets in _RECALLS:
        chosen = _ON_TEST if source == _PROXY_ANCHOR else _UNSAID  # its train.py keeps the best epoch
        for dataset, recall, same in zip(SIZES, recalls, presets, strict=False):  # not all have In-Shop
            if recall is not None:
                yield Published(
                    dataset,
                    loss,
                    None,
                    {"recall_at_1": round(recall / 100, 4)},
                    source,
                    network,
                    same,
                    chosen,
                )


PUBLISHED = list(_rows())


def family_of(dataset: str) -> str | None:
    """The published dataset that a name begins with: `cars196-96px` claims to be of `cars196`."""
    return next((name for name in SIZES if dataset.startswith(name)), None)


def published_rows(dataset: DatasetRef, loss: str, mining: str | None) -> list[Published]:
    """What was published of a loss on a dataset, comparable or not."""
    family = family_of(dataset.name)
    return [
        row for row in PUBLISHED if (row.dataset, row.loss) == (family, loss) and row.mining in (None, mining)
    ]


def why_not(row: Published, dataset: DatasetRef, config: ExperimentConfig) -> list[str]:
    """Every reason why our number of an experiment is not comparable with the published; none: it is."""
    reasons = data_differs(dataset, row.dataset)
    reasons += weights_differ(config)
    if row.preset is None:
        reasons.append(f"protocol: published with {row.network}, which no preset trains alike")
        return reasons
    changed = _changed(decisive_settings(config), decisive_settings(experiment(row.preset)))
    reasons += [f"protocol: {path} is {ours}, there {theirs}" for path, ours, theirs in changed]
    if row.differs is not None:
        reasons.append(f"protocol: {row.differs}")
    return reasons


def data_differs(dataset: DatasetRef, family: str) -> list[str]:
    """What a dataset version lacks of the published one: its images, its split, or their size."""
    reasons = []
    for split, published in SIZES[family].items():
        size = dataset.splits.get(split, SplitSize(rows=0, classes=0))
        if size != published:
            reasons.append(
                f"data: {split} has {size.rows} images of {size.classes} classes, published "
                f"{published.rows} of {published.classes}"
            )
    if not reasons and (side := _median_side(dataset)) < _LEAST_SIDE:
        reasons.append(f"data: half of the images are at most {side} pixels high or wide; they were shrunk")
    return reasons


def weights_differ(config: ExperimentConfig) -> list[str]:
    """Why an encoder's first weights are not the published ones."""
    backbone = config.encoder.backbone
    if backbone.kind == "torchvision" and backbone.weights is None and backbone.pretrained == IMAGENET:
        return []
    if backbone.kind == "conv4":
        return ["weights: conv4 starts from chance, published from ImageNet"]
    if backbone.weights is not None:
        return [f"weights: of the file {backbone.weights.name}, not shown to be torchvision's {IMAGENET}"]
    if backbone.kind == "transformers" or not backbone.pretrained:
        return ["weights: from chance, published from ImageNet"]
    return [f"weights: {backbone.kind}'s pretrained={backbone.pretrained}, published {IMAGENET}"]


def _median_side(dataset: DatasetRef) -> int:
    rows = read_rows(dataset, columns=["width", "height"])
    return int(np.median(np.minimum(rows["width"].to_numpy(), rows["height"].to_numpy())))


def _changed(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], path: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Settings that differ, as dotted paths; the seed, and where weights lie, are no part of a protocol."""
    for key in dict.fromkeys([*ours, *theirs]):
        where = f"{path}{key}"
        one, other = ours.get(key), theirs.get(key)
        if where in ("seed", "encoder.backbone.weights", "encoder.backbone.pretrained") or one == other:
            continue
        if isinstance(one, dict) and isinstance(other, dict) and one.get("kind") == other.get("kind"):
            yield from _changed(one, other, f"{where}.")
        elif isinstance(one, dict) and isinstance(other, dict):
            yield where, one.get("kind"), other.get("kind")
        else:
            yield where, one, other
