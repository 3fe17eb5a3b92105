"""One frozen experiment, checked whole before anything starts: unknown keys are refused, parts agree.

Presets return one; files hold one as JSON; `ExperimentConfig.model_json_schema()` documents every field.
"""

import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from dml.errors import InvalidSetting


class Part(BaseModel):
    """A section of the configuration: immutable, and a misspelled key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


# --- what goes into a dataset ---------------------------------------------------------------------------


class OfficialSplit(Part):
    """The split the source brings itself: CUB, CARS and SOP's class halves, a manifest's `split` column."""

    kind: Literal["official"] = "official"


class ClassSplit(Part):
    """The last classes in sorted order are the test split."""

    kind: Literal["classes"] = "classes"
    test_fraction: float = Field(0.5, ge=0, le=1, description="share of the classes held out for test")


class AttributeSplit(Part):
    """Whole groups of classes are held out: the last values, in sorted order, of an attribute."""

    kind: Literal["attribute"] = "attribute"
    name: str = Field(description="attribute that every class has one value of")
    test_values: int | tuple[str, ...] = Field(description="how many of the last values, or which values")


SplitConfig = Annotated[OfficialSplit | ClassSplit | AttributeSplit, Field(discriminator="kind")]

SourceLayout = Literal[
    "auto", "folder", "omniglot", "cars196", "cub200", "sop", "mnist", "manifest", "glyphs"
]


class IngestConfig(Part):
    """How a source of labelled images becomes a dataset version."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", description="the dataset's name in the store")
    source: str = Field(description="folder, zip, manifest file, or `glyphs:` for drawn characters")
    layout: SourceLayout = "auto"
    split: SplitConfig | None = Field(None, description="None: what the layout's field uses")
    max_pixels: int = Field(64_000_000, gt=0, description="larger images go to quarantine")
    max_bytes: int = Field(64 << 20, gt=0, description="larger files go to quarantine")
    quarantine_contradictions: bool = Field(False, description="the same bytes under several labels")
    rows_per_fragment: int = Field(1024, gt=0, description="rows of one Parquet file, one unit of work")
    rows_per_group: int = Field(128, gt=0, description="rows of one Parquet row group")
    num_workers: int | None = Field(None, ge=1, description="None: one for a small source, else all cores")


# --- what an image becomes before it is embedded --------------------------------------------------------


class PreprocessingConfig(Part):
    """The deterministic way from an image to a tensor; it is part of the package."""

    color: Literal["RGB", "L"] = "RGB"
    resize: int = Field(256, gt=0, description="shorter side in pixels")
    crop: int = Field(224, gt=0, description="side of the centre crop, in pixels")
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    @property
    def channels(self) -> int:
        return len(self.color)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.crop > self.resize:
            raise ValueError(f"crop must not exceed resize; got {self.crop} and {self.resize}.")
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise ValueError(
                f"mean and std need one value for each of {self.color!r}'s {self.channels} channels; "
                f"got {len(self.mean)} and {len(self.std)}."
            )
        return self


class AugmentationConfig(Part):
    """What training does to an image beyond preprocessing; everything off by default."""

    random_resized_crop: tuple[float, float] | None = Field(
        None, description="area range of the crop, (0, 1]"
    )
    horizontal_flip: bool = False
    rotation: float = Field(0.0, ge=0, le=180, description="degrees, drawn from [-rotation, rotation]")
    translation: float = Field(0.0, ge=0, le=0.5, description="share of the side")
    scaling: tuple[float, float] | None = Field(None, description="range of the zoom factor")

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        for name, most in (("random_resized_crop", 1.0), ("scaling", 10.0)):
            bounds = getattr(self, name)
            if bounds is not None and not 0 < bounds[0] <= bounds[1] <= most:
                raise ValueError(f"{name} must be a range within (0, {most:g}]; got {list(bounds)}.")
        return self


# --- what embeds it -------------------------------------------------------------------------------------


class Conv4Config(Part):
    """Four blocks of convolution, batch norm, ReLU and pooling, for 28-pixel images."""

    kind: Literal["conv4"] = "conv4"
    width: int = Field(64, gt=0, description="channels of every block")


class TorchvisionConfig(Part):
    """A torchvision classification network without its classifier."""

    kind: Literal["torchvision"] = "torchvision"
    name: Literal["squeezenet1_1", "googlenet", "resnet18", "resnet50"] = "squeezenet1_1"
    pretrained: bool | Literal["IMAGENET1K_V1", "IMAGENET1K_V2"] = Field(
        False, description="fetch ImageNet weights from the hub; True: torchvision's latest"
    )
    weights: Path | None = Field(None, description="a local safetensors file in torchvision's key names")


class TimmConfig(Part):
    """Any backbone of timm."""

    kind: Literal["timm"] = "timm"
    name: str = "resnet50"
    pretrained: bool = Field(False, description="fetch weights from the hub")
    weights: Path | None = Field(None, description="a local safetensors file in timm's key names")


BackboneConfig = Annotated[Conv4Config | TorchvisionConfig | TimmConfig, Field(discriminator="kind")]


class EncoderConfig(Part):
    """Backbone, pooling and a linear head onto the unit sphere."""

    backbone: BackboneConfig = Conv4Config()
    pooling: Literal["avg", "max", "avg+max", "gem", "own"] = Field("avg", description="own: timm's, as CLS")
    dim: int = Field(128, gt=0, description="length of the embedding")
    layer_norm: bool = Field(False, description="normalise pooled features before the head")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of pooled features dropped while training")
    freeze_batch_norm: bool = Field(False, description="keep the backbone's running statistics and affine")


# --- what is learnt from it -----------------------------------------------------------------------------


class _ClassBatches(Part):
    """P classes with K images each make one global batch."""

    classes_per_batch: int = Field(28, ge=2, description="P")
    samples_per_class: int = Field(4, ge=1, description="K")

    @property
    def batch_size(self) -> int:
        return self.classes_per_batch * self.samples_per_class


class SamplerConfig(_ClassBatches):
    """P x K: every class once per pass, every image once per round of its class."""

    kind: Literal["pk"] = "pk"


class AttributeSamplerConfig(_ClassBatches):
    """P x K, all classes of a batch with one value of an attribute of the dataset."""

    kind: Literal["attribute"] = "attribute"
    attribute: str = Field(description="a column of the dataset, such as category or camera")
    small_values: Literal["pool", "refuse"] = Field("pool", description="values of fewer than P classes")
    several_values: Literal["refuse", "majority", "split"] = Field(
        "refuse", description="classes of several values; split: under each with its rows of that one"
    )


class SimilarSamplerConfig(_ClassBatches):
    """P x K, each batch some seed classes and those most similar to them."""

    kind: Literal["similar"] = "similar"
    seeds_per_batch: int = Field(1, ge=1, description="divides P; more seeds, easier batches")
    refresh_every_steps: int = Field(
        100,
        gt=0,
        description="batches dealt from the same class vectors; plain P x K until the first refresh",
    )
    momentum: float = Field(0.5, ge=0, lt=1, description="of running class means; proxies have none")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.classes_per_batch % self.seeds_per_batch:
            raise ValueError(
                f"classes_per_batch must be a multiple of seeds_per_batch; got {self.classes_per_batch} and "
                f"{self.seeds_per_batch}."
            )
        return self


class ShuffledSamplerConfig(Part):
    """Every image once per epoch, whatever its class; for proxy losses."""

    kind: Literal["shuffled"] = "shuffled"
    batch_size: int = Field(112, ge=2, description="of the global batch")


def _sampler_kind(sampler: Any) -> Any:
    """The kind of a sampler, P x K where it names none, as experiments did before there were others."""
    if isinstance(sampler, dict):
        return sampler.get("kind", "pk")
    return getattr(sampler, "kind", None)


BatchesConfig = Annotated[
    Annotated[SamplerConfig, Tag("pk")]
    | Annotated[AttributeSamplerConfig, Tag("attribute")]
    | Annotated[SimilarSamplerConfig, Tag("similar")]
    | Annotated[ShuffledSamplerConfig, Tag("shuffled")],
    Discriminator(_sampler_kind),
]


Mining = Literal[
    "all", "random", "batch-hard", "semi-hard", "soft-hard", "distance-weighted", "n-pair", "multi-similarity"
]
"""How a batch's tuples are chosen; `dml.losses.mining` describes each."""


class WithoutMining(Part):
    """A loss that weighs all pairs or proxies itself."""

    @model_validator(mode="before")
    @classmethod
    def _no_mining(cls, values: Any) -> Any:
        if isinstance(values, dict) and "mining" in values:
            raise ValueError(
                f"The {values.get('kind')} loss weighs all pairs or proxies itself, so none are mined; "
                f"got mining {values['mining']!r}. Leave it out, or take contrastive, triplet or margin."
            )
        return values


class ContrastiveConfig(Part):
    kind: Literal["contrastive"] = "contrastive"
    positive_margin: float = Field(0.0, ge=0, description="distance below which positives rest")
    negative_margin: float = Field(1.0, gt=0, le=2, description="distance beyond which negatives rest")
    squared: bool = Field(True, description="squared hinges, as Hadsell et al.")
    mining: Mining = "all"


class TripletConfig(Part):
    kind: Literal["triplet"] = "triplet"
    mining: Mining = "semi-hard"
    margin: float | None = Field(0.2, gt=0, le=4, description="None: soft margin, log(1 + exp)")
    squared: bool = Field(True, description="squared Euclidean distance, as FaceNet")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.mining == "semi-hard" and self.margin is None:
            raise ValueError(
                "Semi-hard triplets are those within the margin, so margin must be a number; got None."
            )
        return self


class MarginConfig(Part):
    kind: Literal["margin"] = "margin"
    alpha: float = Field(0.2, gt=0, le=2, description="half the gap, of Euclidean distance")
    beta: float = Field(1.2, gt=0, le=2, description="the boundary to start from")
    nu: float = Field(0.0, ge=0, description="weight of the boundaries")
    per_class: bool = Field(False, description="a boundary for each class, instead of one")
    learn_beta: bool = True
    mining: Mining = "distance-weighted"


class NPairConfig(WithoutMining):
    kind: Literal["n-pair"] = "n-pair"
    scale: float = Field(
        16.0,
        gt=0,
        description="of inner products; the paper's 1 is for embeddings of any length, not unit ones",
    )


class LiftedStructureConfig(WithoutMining):
    kind: Literal["lifted-structure"] = "lifted-structure"
    margin: float = Field(1.0, gt=0, le=2, description="of Euclidean distance")


class RankedListConfig(WithoutMining):
    kind: Literal["ranked-list"] = "ranked-list"
    boundary: float = Field(1.2, gt=0, le=2, description="negatives rest beyond this distance")
    margin: float = Field(0.4, ge=0, le=2, description="positives rest within boundary - margin")
    temperature: float = Field(10.0, ge=0)
    negative_weight: float = Field(1.0, ge=0)


class SmoothAPConfig(WithoutMining):
    kind: Literal["smooth-ap"] = "smooth-ap"
    temperature: float = Field(0.01, gt=0)


class RecallAtKConfig(WithoutMining):
    kind: Literal["recall-at-k"] = "recall-at-k"
    ks: tuple[Annotated[int, Field(ge=1)], ...] = Field((1, 2, 4, 8, 16), min_length=1)
    rank_temperature: float = Field(0.01, gt=0)
    cut_temperature: float = Field(1.0, gt=0)


class MultiSimilarityConfig(WithoutMining):
    kind: Literal["multi-similarity"] = "multi-similarity"
    alpha: float = Field(2.0, gt=0)
    beta: float = Field(50.0, gt=0)
    base: float = Field(0.5, ge=-1, le=1)
    epsilon: float | None = Field(0.1, ge=0, description="the miner's slack; None: no mining")


class SupConConfig(WithoutMining):
    kind: Literal["sup-con"] = "sup-con"
    temperature: float = Field(0.1, gt=0)


class NTXentConfig(WithoutMining):
    kind: Literal["nt-xent"] = "nt-xent"
    temperature: float = Field(0.1, gt=0)


class CircleConfig(WithoutMining):
    kind: Literal["circle"] = "circle"
    margin: float = Field(0.4, ge=0, le=1)
    scale: float = Field(80.0, gt=0)


class GeneralisedLiftedConfig(WithoutMining):
    kind: Literal["generalised-lifted"] = "generalised-lifted"
    margin: float = Field(1.0, gt=0, le=2, description="gap of Euclidean distance")


class ProxyLossPart(WithoutMining):
    """What every loss with a proxy for each class can be told."""

    sharded: bool = Field(False, description="each worker holds only its share of the proxies")


class ContestPart(ProxyLossPart):
    sample_rate: float | None = Field(None, gt=0, le=1, description="Partial-FC; None: all classes")


class SoftmaxConfig(ContestPart):
    kind: Literal["softmax"] = "softmax"


class NormalisedSoftmaxConfig(ContestPart):
    kind: Literal["normalised-softmax"] = "normalised-softmax"
    temperature: float = Field(0.05, gt=0)


class CosFaceConfig(ContestPart):
    kind: Literal["cosface"] = "cosface"
    margin: float = Field(0.35, ge=0, le=2, description="of cosine")
    scale: float = Field(64.0, gt=0)


class ArcFaceConfig(ContestPart):
    kind: Literal["arcface"] = "arcface"
    margin: float = Field(0.5, ge=0, le=3.14, description="radians")
    scale: float = Field(64.0, gt=0)
    beyond_pi: Literal["linear", "cosine"] = Field("linear", description="where the cosine would rise again")


class ProxyNCAConfig(ContestPart):
    kind: Literal["proxy-nca"] = "proxy-nca"
    scale: float = Field(9.0, gt=0, description="of squared distances")


class ProxyNCAPlusPlusConfig(ContestPart):
    kind: Literal["proxy-nca++"] = "proxy-nca++"
    temperature: float = Field(1 / 9, gt=0, description="of squared distances")


class SoftTripleConfig(ContestPart):
    kind: Literal["soft-triple"] = "soft-triple"
    centres: int = Field(10, ge=1, description="K; the paper has 10 for CUB and CARS, 2 for SOP")
    scale: float = Field(20.0, gt=0, description="lambda")
    gamma: float = Field(0.1, gt=0, description="temperature of the choice among centres")
    margin: float = Field(0.01, ge=0, le=2, description="delta")
    tau: float = Field(0.2, ge=0, description="weight of the regulariser")


class ProxyAnchorConfig(ProxyLossPart):
    kind: Literal["proxy-anchor"] = "proxy-anchor"
    margin: float = Field(0.1, ge=0, le=1)
    scale: float = Field(32.0, gt=0)


ProxyLossConfig = (
    SoftmaxConfig
    | NormalisedSoftmaxConfig
    | CosFaceConfig
    | ArcFaceConfig
    | ProxyNCAConfig
    | ProxyNCAPlusPlusConfig
    | SoftTripleConfig
    | ProxyAnchorConfig
)
_WithinBatchConfig = NPairConfig | LiftedStructureConfig
LossConfig = Annotated[
    ContrastiveConfig
    | TripletConfig
    | MarginConfig
    | NPairConfig
    | LiftedStructureConfig
    | RankedListConfig
    | SmoothAPConfig
    | RecallAtKConfig
    | MultiSimilarityConfig
    | SupConConfig
    | NTXentConfig
    | CircleConfig
    | GeneralisedLiftedConfig
    | ProxyLossConfig,
    Field(discriminator="kind"),
]


class MemoryConfig(Part):
    """Former batches' embeddings as further references (XBM)."""

    size: int = Field(8192, gt=0, description="embeddings remembered")
    start_after: int = Field(1000, ge=0, description="steps before the memory is used")
    weight: float = Field(1.0, gt=0, description="of the loss against the memory")


class OptimizerConfig(Part):
    """One optimiser with separate rates for backbone, head and the loss's own parameters."""

    kind: Literal["adamw", "adam", "sgd"] = Field(
        "adamw", description="adam: decay as a part of the gradient, as papers before AdamW have it"
    )
    learning_rate: float = Field(1e-4, gt=0, description="of the backbone")
    head_learning_rate: float | None = Field(None, gt=0, description="None: as the backbone")
    loss_learning_rate: float | None = Field(None, gt=0, description="None: 100 times the backbone's")
    weight_decay: float = Field(1e-4, ge=0)
    loss_weight_decay: float | None = Field(
        None, ge=0, description="of the loss's parameters; None: the same"
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD")
    warmup_steps: int = Field(0, ge=0, description="steps of linear growth to the full rate")
    freeze_backbone_steps: int = Field(
        0,
        ge=0,
        description="first steps in which head and loss learn alone; the backbone then only evaluates",
    )
    schedule: Literal["constant", "cosine", "step"] = "cosine"
    milestones: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (), description="of schedule step: where the rate falls; below 1 shares of num_steps, else steps"
    )
    gamma: float = Field(
        0.1, gt=0, lt=1, description="of schedule step: what the rate is multiplied by there"
    )
    clip_norm: float | None = Field(None, gt=0, description="None: gradients are not clipped")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        stones = list(self.milestones)
        if (self.schedule == "step") != bool(stones):
            raise ValueError(
                f"Milestones belong to the schedule 'step', which needs at least one; got schedule "
                f"{self.schedule!r} and milestones {stones}."
            )
        if stones != sorted(set(stones)) or len({stone < 1 for stone in stones}) > 1:
            raise ValueError(
                f"milestones must ascend, all of them shares of num_steps below 1 or all of them steps; got "
                f"{stones}."
            )
        if any(stone >= 1 and stone != int(stone) for stone in stones):
            raise ValueError(f"milestones that are steps must be whole; got {stones}.")
        return self


class ValidationConfig(Part):
    """Some training classes are held out to tell which step's weights are kept: the best."""

    fraction: float = Field(0.1, gt=0, le=0.5, description="share of the training classes held out")
    every_steps: int = Field(200, gt=0, description="also judged: the last step")
    metric: Literal["recall_at_1", "r_precision", "map_at_r"] = "recall_at_1"


class TrainingConfig(Part):
    """How long, on how many workers, and what is kept on the way."""

    num_steps: int = Field(1000, gt=0)
    num_workers: int = Field(1, ge=1, description="1: in this process; more: a Ray Train worker group")
    use_gpu: bool | None = Field(None, description="None: where there is one")
    precision: Literal["float32", "bfloat16"] | None = Field(None, description="None: bfloat16 on a GPU")
    channels_last: bool = True
    compile: bool = Field(False, description="torch.compile the encoder; minutes before the first step")
    ema_decay: float | None = Field(
        None, gt=0, lt=1, description="keep the weights' moving average, and ship it; None: the last weights"
    )
    validation: ValidationConfig | None = Field(
        None, description="keep the step best on held-out classes; None: train on all, keep the last"
    )
    chunk_rows: int | None = Field(
        None,
        ge=1,
        description="images a worker embeds at a time, in two passes; None: its whole share in one",
    )
    ghost_batch_norm: bool = Field(False, description="batch norm by each chunk's own statistics")
    threads_per_worker: int | None = Field(None, ge=1, description="None: this machine's cores over workers")
    checkpoint_every_steps: int = Field(200, gt=0)
    log_every_steps: int = Field(20, gt=0)
    max_failures: int = Field(2, ge=0, description="how often a killed worker group is started again")


# --- how it is judged and served ------------------------------------------------------------------------


Rank = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, lt=1)]


class FewShotConfig(Part):
    """N-way K-shot episodes: accuracy by nearest class mean and by nearest example, with 95 % intervals."""

    ways: int = Field(20, ge=2, description="classes of an episode")
    shots: tuple[Rank, ...] = Field((1, 5), min_length=1, description="examples of each class")
    queries_per_class: int = Field(5, ge=1)
    episodes: int = Field(1000, ge=2)
    within: str | None = Field(
        None, description="an episode's classes share this attribute, as Omniglot's alphabet"
    )

    @property
    def metrics(self) -> list[str]:
        return [f"{self.ways}_way_{k}_shot_{by}" for k in self.shots for by in ("class_mean", "nearest")]


class BootstrapConfig(Part):
    """Intervals of every retrieval number, beside it as NAME.low and NAME.high."""

    resamples: int = Field(1000, ge=1)
    by: Literal["class", "query"] = Field(
        "class", description="what is drawn; queries of one class err together, so `query` is too narrow"
    )
    confidence: Rate = 0.95


class EvaluationConfig(Part):
    """Which numbers an evaluation gives, and who searches whom; by default every row all the others."""

    recall_at: tuple[Rank, ...] = Field((1, 2, 4, 8), min_length=1)
    precision_at: tuple[Rank, ...] = ()
    map_at: tuple[Rank, ...] = Field((), description="K of MAP@K, once per denominator")
    map_denominators: tuple[Literal["relevant", "attainable", "retrieved"], ...] = ("relevant", "attainable")
    full_map: bool = Field(False, description="average precision over the whole ranking; slower")
    macro: bool = Field(False, description="also the means of the classes' means, as NAME_macro")
    slices: tuple[str, ...] = Field((), description="attributes by whose values the queries are also judged")
    role_attribute: str | None = Field(
        None, description="attribute that says `query` or `gallery`; None: every row is both"
    )
    same_camera_attribute: str | None = Field(
        None, description="answers of the query's class with its value of this are no pair (Market-1501)"
    )
    bootstrap: BootstrapConfig | None = None
    false_accept_rates: tuple[Rate, ...] = Field(
        (), description="verification on all pairs: EER, TAR at these"
    )
    few_shot: FewShotConfig | None = None
    nmi: bool = Field(True, description="k-means is the slow part of an evaluation")
    nmi_average: Literal["arithmetic", "geometric"] = "arithmetic"
    ami: bool = Field(False, description="with nmi: also adjusted for chance")
    kmeans_seeds: int = Field(1, ge=1, description="runs of k-means, averaged")
    baselines: bool = Field(
        True, description="raw pixels, and the encoder before training, in the same table"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.ami and not self.nmi:
            raise ValueError("ami judges the clusters that nmi finds, so nmi must be on; got ami alone.")
        return self

    @property
    def query_metrics(self) -> list[str]:
        """The names of the numbers that every single query has."""
        maps = [f"map_at_{k}_by_{by}" for k in self.map_at for by in self.map_denominators]
        return [
            *(f"recall_at_{k}" for k in self.recall_at),
            *(f"precision_at_{k}" for k in self.precision_at),
            *("r_precision", "map_at_r"),
            *maps,
            *(["map"] if self.full_map else []),
        ]

    @property
    def metrics(self) -> list[str]:
        """The names of the numbers an evaluation gives, without those of slices and intervals."""
        rates = [f"tar_at_far_{rate:g}" for rate in self.false_accept_rates]
        clustering = ["nmi", "pairwise_f1", *(["ami"] if self.ami else [])] if self.nmi else []
        return [
            *self.query_metrics,
            *(f"{name}_macro" for name in (self.query_metrics if self.macro else [])),
            *(["eer", *rates] if rates else []),
            *(self.few_shot.metrics if self.few_shot else []),
            *clustering,
        ]

    def overridden(self, assignments: list[str]) -> "EvaluationConfig":
        """A copy with settings replaced, each `key=value`, as `ExperimentConfig.overridden`."""
        try:
            return EvaluationConfig.model_validate(_assigned(self, assignments))
        except ValidationError as error:
            raise invalid_setting(error) from None


class ReportConfig(Part):
    """What a report shows, and how much of it."""

    split: Literal["train", "test"] = Field("test", description="train: to look for wrong labels there")
    queries: int = Field(8, ge=0, description="spread evenly over the split, shown with their answers")
    answers: int = Field(8, ge=1, description="shown of each query")
    failures: int = Field(
        12,
        ge=0,
        description="shown of the worst queries, of confident mistakes, of what one model alone finds",
    )
    suspects: int = Field(24, ge=0, description="suspected labels shown; suspects.csv lists all")
    agreeing: int = Field(5, ge=2, description="nearest neighbours that must agree on another label")
    false_accept_rates: tuple[Rate, ...] = Field((0.001, 0.01, 0.1), description="thresholds to draw")
    map_points: int = Field(1000, ge=10, description="items on the map of the embedding; t-SNE is slow")
    map_classes: int = Field(16, ge=1, le=24, description="classes with a colour of their own on it")
    evaluation: EvaluationConfig = Field(EvaluationConfig(), description="who searches whom, which numbers")

    def overridden(self, assignments: list[str]) -> "ReportConfig":
        """A copy with settings replaced, each `path.to.key=value`, as `ExperimentConfig.overridden`."""
        try:
            return ReportConfig.model_validate(_assigned(self, assignments))
        except ValidationError as error:
            raise invalid_setting(error) from None


class GateConfig(Part):
    """When a new version becomes the champion."""

    metric: str = "recall_at_1"
    min_gain: float = Field(0.0, description="how much better than the champion it must be, strictly")
    confidence: Rate | None = Field(
        None,
        description="that the gain is beyond noise, by a paired test of classes; None: no test",
    )


class IndexConfig(Part):
    factory: str = Field("auto", description="auto: Flat below 100,000 rows, IVF beyond; or a Faiss string")
    num_probes: int | None = Field(None, gt=0, description="IVF lists searched; None: chosen by recall")
    recall_queries: int = Field(1000, gt=0, description="queries of the recall measurement")


class BenchConfig(Part):
    """A grid of experiments, each dataset with each loss and seed, and the table it ends with."""

    datasets: tuple[str, ...] = Field(min_length=1, description="NAME or NAME@VERSION")
    presets: tuple[str, ...] = Field(
        ("smoke",), min_length=1, description="NAME for every dataset, or DATASET=NAME for one"
    )
    losses: tuple[str, ...] = Field(
        (), description="KIND or KIND/MINING, a row each; none: each preset is a row, as it is"
    )
    minings: tuple[Mining, ...] = Field(
        (), description="for losses that take one and name none, a row each; none: the loss's own"
    )
    seeds: int = Field(3, ge=1, description="runs of each row, seeds 0, 1, ...")
    settings: tuple[str, ...] = Field(
        (), description="path.to.key=value; WHERE:path.to.key=value for one dataset or one loss"
    )
    baselines: tuple[Literal["raw pixels", "softmax"], ...] = ("raw pixels", "softmax")
    compare: tuple[tuple[str, str], ...] = Field(
        (), description="pairs of rows for the paired test: KIND, KIND/MINING or PRESET, also with @SEED"
    )
    compare_metric: str = Field("recall_at_1", description="one that every single query has")
    parallel: int | None = Field(
        None, ge=1, description="cells at a time; None: as many as this machine has GPUs, at least 1"
    )
    reproduce: str | None = Field(
        None, description="a publication whose data and weights must be there: confusezius-cub200, ..."
    )

    def rows(self) -> list[tuple[str, str | None]]:
        """Kind and mining of each loss; None where the loss takes none, or is to use its own.

        Raises:
            InvalidSetting: an unknown loss or mining, or one that the loss does not take.
        """
        found: dict[tuple[str, str | None], None] = {}
        for text in self.losses:
            kind, slash, mining = text.partition("/")
            takes = takes_mining(kind)
            if slash and not takes:
                raise InvalidSetting(
                    f"The {kind} loss takes no mining; got {text!r}. Losses that do: "
                    f"{', '.join(k for k in loss_kinds() if takes_mining(k))}."
                )
            if slash and mining not in get_args(Mining):
                raise InvalidSetting(f"mining must be one of {', '.join(get_args(Mining))}; got {text!r}.")
            several = self.minings if takes and not slash else ()
            found |= dict.fromkeys((kind, each) for each in several or (mining or None,))
        if self.minings and not any(mining in self.minings for _, mining in found):
            raise InvalidSetting(
                f"None of the losses {list(self.losses)} takes a mining of --mining; got "
                f"{list(self.minings)}. Leave it out, or add one of "
                f"{', '.join(k for k in loss_kinds() if takes_mining(k))}."
            )
        return list(found)


def loss_kinds() -> dict[str, type[Part]]:
    """Every loss by its kind."""
    union = get_args(LossConfig)[0]
    return {part.model_fields["kind"].default: part for part in get_args(union)}


def takes_mining(kind: str) -> bool:
    """Whether a loss learns from tuples that a miner chooses; raises InvalidSetting for an unknown loss."""
    kinds = loss_kinds()
    if kind not in kinds:
        raise InvalidSetting(f"A loss must be one of {', '.join(kinds)}; got {kind!r}.")
    return "mining" in kinds[kind].model_fields


def parse_bench(tree: Any) -> BenchConfig:
    """The grid a JSON tree describes; raises InvalidSetting naming every setting that is wrong."""
    try:
        return BenchConfig.model_validate(tree)
    except ValidationError as error:
        raise invalid_setting(error) from None


_CONV4_LEAST_SIDE = 16


class ExperimentConfig(Part):
    """Everything that decides what a training run does, except the dataset version."""

    name: str = Field(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9._-]*$", description="the registered model's name")
    seed: int = Field(0, ge=0, lt=2**31)
    preprocessing: PreprocessingConfig = PreprocessingConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    encoder: EncoderConfig = EncoderConfig()
    sampler: BatchesConfig = SamplerConfig()
    loss: LossConfig = MultiSimilarityConfig()
    memory: MemoryConfig | None = Field(None, description="None: the loss sees its batch alone")
    optimizer: OptimizerConfig = OptimizerConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    gate: GateConfig = GateConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        workers, sampler = self.training.num_workers, self.sampler
        if sampler.batch_size % workers:
            if isinstance(sampler, ShuffledSamplerConfig):
                what, number, unit = "batch_size", sampler.batch_size, workers
            else:
                what, number = "classes_per_batch", sampler.classes_per_batch
                unit = workers // math.gcd(workers, sampler.samples_per_class)
            raise ValueError(
                f"Every worker gets equally many images of a batch, so {what} must be a multiple of {unit} "
                f"for {workers} workers; got {number}. Nearest below: {number - number % unit}."
            )
        if self.memory is not None:
            self._check_memory(self.memory)
        if not isinstance(self.loss, ProxyLossConfig):
            if isinstance(sampler, ShuffledSamplerConfig):
                raise ValueError(
                    f"The {self.loss.kind} loss learns from pairs of the same class, which a shuffled batch "
                    "need not hold; got sampler kind 'shuffled'. Take kind 'pk', or a proxy loss."
                )
            if sampler.samples_per_class < 2:
                raise ValueError(
                    f"The {self.loss.kind} loss learns from pairs of the same class, so samples_per_class "
                    f"must be at least 2; got {sampler.samples_per_class}."
                )
        if self.sampler.kind == "similar" and isinstance(self.loss, ProxyLossConfig) and self.loss.sharded:
            raise ValueError(
                "The similar sampler compares the proxies of all classes, so every worker must hold them; "
                "got loss.sharded. Take another sampler, or sharded=false."
            )
        self._check_chunks(self.sampler.batch_size // workers)
        kind, color = self.encoder.backbone.kind, self.preprocessing.color
        if kind != "conv4" and color != "RGB":
            raise ValueError(f"The {kind} backbones take RGB images; got color {color!r}.")
        if kind == "conv4" and self.preprocessing.crop < _CONV4_LEAST_SIDE:
            raise ValueError(
                f"conv4 halves the image four times, so crop must be at least {_CONV4_LEAST_SIDE}; got "
                f"{self.preprocessing.crop}."
            )
        if kind != "timm" and self.encoder.pooling == "own":
            raise ValueError(f"pooling 'own' is what a timm backbone brings; got backbone {kind!r}.")
        late = [stone for stone in self.optimizer.milestones if stone >= self.training.num_steps]
        if late:
            raise ValueError(
                f"optimizer.milestones must come before the last step; got {late} of "
                f"{self.training.num_steps} steps. Shares of num_steps, below 1, follow it by themselves."
            )
        if self.gate.metric not in self.evaluation.metrics:
            raise ValueError(
                f"gate.metric must be one of what the evaluation measures, {self.evaluation.metrics}; got "
                f"{self.gate.metric!r}."
            )
        if self.gate.confidence is not None and self.gate.metric not in self.evaluation.query_metrics:
            raise ValueError(
                f"gate.confidence compares query by query, so gate.metric must be one of "
                f"{self.evaluation.query_metrics}; got {self.gate.metric!r}."
            )
        return self

    def _check_memory(self, memory: MemoryConfig) -> None:
        mines_n_pairs = getattr(self.loss, "mining", None) == "n-pair"
        if mines_n_pairs or isinstance(self.loss, ProxyLossConfig | _WithinBatchConfig):
            what = "n-pair mining" if mines_n_pairs else f"the {self.loss.kind} loss"
            raise ValueError(
                f"A memory serves losses of pairs whose other ends may be of former batches; got {what}. Set "
                "memory to null, or choose another."
            )
        if memory.start_after >= self.training.num_steps:
            raise ValueError(
                f"memory.start_after must be less than num_steps, or the memory is never used; got "
                f"{memory.start_after} and {self.training.num_steps}."
            )

    def _check_chunks(self, share: int) -> None:
        chunk_rows, ghost = self.training.chunk_rows, self.training.ghost_batch_norm
        if ghost and chunk_rows is None:
            raise ValueError("ghost_batch_norm normalises chunks, so chunk_rows must be a number; got None.")
        if ghost and self.encoder.freeze_batch_norm:
            raise ValueError("A batch norm is either ghost_batch_norm or freeze_batch_norm; got both.")
        if ghost and chunk_rows is not None and share % chunk_rows:
            raise ValueError(
                f"With ghost_batch_norm chunk_rows must divide a worker's share of the batch, so that any "
                f"number of workers cuts the same chunks; got {chunk_rows} and a share of {share}."
            )
        backbone = self.encoder.backbone
        normalises = backbone.kind == "conv4" or (
            backbone.kind == "torchvision" and backbone.name != "squeezenet1_1"
        )
        if chunk_rows is not None and normalises and not (ghost or self.encoder.freeze_batch_norm):
            raise ValueError(
                f"chunk_rows changes what batch norm does, and {backbone.kind} has batch norms. Set "
                "encoder.freeze_batch_norm, or training.ghost_batch_norm to normalise each chunk by itself."
            )

    def overridden(self, assignments: list[str]) -> "ExperimentConfig":
        """A copy with settings replaced, each `path.to.key=value` with the value in JSON (or plain text).

        Raises:
            InvalidSetting: an unknown key, or values that do not fit together.
        """
        return parse_experiment(_assigned(self, assignments))


def _assigned(config: Part, assignments: list[str]) -> dict[str, Any]:
    """A configuration's JSON tree with values replaced by `path.to.key=value`."""
    tree: dict[str, Any] = json.loads(config.model_dump_json())
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise InvalidSetting(f"A setting must read path.to.key=value; got {assignment!r}.")
        *parents, key = path.split(".")
        part = tree
        for parent in parents:
            if part.get(parent) is None:  # a part that is off is turned on by any setting of it
                part[parent] = {}
            part = part[parent]
            if not isinstance(part, dict):
                raise InvalidSetting(f"{path!r} is not a setting: {parent!r} has no parts.")
        try:
            part[key] = json.loads(text)
        except json.JSONDecodeError:
            part[key] = text
    return tree


def parse_ingest(tree: Any) -> IngestConfig:
    """The ingest a JSON tree describes; raises InvalidSetting naming every setting that is wrong."""
    try:
        return IngestConfig.model_validate(tree)
    except ValidationError as error:
        raise invalid_setting(error) from None


def parse_experiment(tree: Any) -> ExperimentConfig:
    """The experiment a JSON tree describes; raises InvalidSetting naming every setting that is wrong."""
    try:
        return ExperimentConfig.model_validate(tree)
    except ValidationError as error:
        raise invalid_setting(error) from None


def read_experiment(path: str | Path) -> ExperimentConfig:
    """The experiment in a JSON file; raises InvalidSetting when it cannot be read or followed."""
    try:
        return parse_experiment(json.loads(Path(path).read_text()))
    except (OSError, json.JSONDecodeError) as error:
        raise InvalidSetting(f"An experiment file must be readable JSON; {path}: {error}.") from error


def invalid_setting(error: ValidationError) -> InvalidSetting:
    """pydantic's findings as one sentence each, without its jargon."""
    findings = []
    for finding in error.errors():
        where = ".".join(str(part) for part in finding["loc"]) or "settings"
        came = f"; got {finding['input']!r}" if finding["type"] != "value_error" else ""
        findings.append(f"{where}: {finding['msg'].removeprefix('Value error, ')}{came}")
    return InvalidSetting("Settings must fit their schema. " + " | ".join(findings))
