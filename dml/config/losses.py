"""Every loss and mining by its name, with its own settings, and the memory around it."""

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, model_validator

from dml.config.part import Part
from dml.errors import InvalidSetting, did_you_mean

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
WithinBatchConfig = NPairConfig | LiftedStructureConfig
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


def loss_kinds() -> dict[str, type[Part]]:
    """Every loss by its kind."""
    union = get_args(LossConfig)[0]
    return {part.model_fields["kind"].default: part for part in get_args(union)}


def takes_mining(kind: str) -> bool:
    """Whether a loss learns from tuples that a miner chooses; raises InvalidSetting for an unknown loss."""
    kinds = loss_kinds()
    if kind not in kinds:
        raise InvalidSetting(
            f"A loss must be one of {', '.join(kinds)}; got {kind!r}.{did_you_mean(kind, kinds)}"
        )
    return "mining" in kinds[kind].model_fields
