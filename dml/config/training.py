"""Configuration of the first weights, the optimizer, its schedule, validation and the training loop."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from dml.config.part import Part

Precision = Literal["auto", "float32", "tf32", "bfloat16"]
"""Precision of the encoder's matrix products; losses are always float32."""


Tuning = Literal["frozen", "lora", "whole"]
"""What is trained of a package that training starts from: the head alone, low-rank adapters too, or all."""


class LoraConfig(Part):
    """Low-rank adapters of linear and convolution layers; the package holds them merged into the weights."""

    rank: int = Field(8, ge=1, description="of the update of a layer's weights")
    alpha: float = Field(16.0, gt=0, description="the update is multiplied by alpha / rank")


class InitialConfig(Part):
    """A package that training starts from; `dml train --from MODEL` fills it in."""

    uri: str = Field(description="the package's folder")
    fingerprint: str = Field(description="the package's")
    model: str | None = Field(None, description="the registered version, for the reader")
    tune: Tuning = Field(
        "whole",
        description="frozen: only the head; lora: head and low-rank adapters of the backbone; whole: all",
    )
    lora: LoraConfig = LoraConfig()

    @model_validator(mode="before")
    @classmethod
    def _named(cls, tree: Any) -> Any:
        if isinstance(tree, Mapping) and not {"uri", "fingerprint"} <= tree.keys():
            raise ValueError(
                f"it must name a package to start from; got only {', '.join(tree)}. Name the model: dml "
                "train DATASET --from MODEL."
            )
        return tree


class OptimizerConfig(Part):
    """One optimizer with separate learning rates for the backbone, the head and the loss's parameters."""

    kind: Literal["adamw", "adam", "sgd"] = Field(
        "adamw", description="adam: weight decay as a part of the gradient, as in papers before AdamW"
    )
    learning_rate: float = Field(1e-4, gt=0, description="of the backbone")
    head_learning_rate: float | None = Field(None, gt=0, description="None: as the backbone")
    loss_learning_rate: float | None = Field(None, gt=0, description="None: 100 times the backbone's")
    weight_decay: float = Field(1e-4, ge=0)
    loss_weight_decay: float | None = Field(
        None, ge=0, description="for the loss's parameters; None: as weight_decay"
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD")
    warmup_steps: int = Field(0, ge=0, description="steps of linear growth to the full rate")
    freeze_backbone_steps: int = Field(
        0,
        ge=0,
        description="first steps that train only head and loss; the backbone is in evaluation mode",
    )
    schedule: Literal["constant", "cosine", "step"] = "cosine"
    milestones: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (),
        description="for schedule step: when the rate falls; fractions of num_steps if below 1, else steps",
    )
    gamma: float = Field(
        0.1, gt=0, lt=1, description="for schedule step: factor of the rate at each milestone"
    )
    clip_norm: float | None = Field(None, gt=0, description="None: gradients are not clipped")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        stones = list(self.milestones)
        if (self.schedule == "step") != bool(stones):
            raise ValueError(
                f"The schedule 'step' needs at least one milestone, and no other schedule takes any; got "
                f"schedule {self.schedule!r} and milestones {stones}."
            )
        if stones != sorted(set(stones)) or len({stone < 1 for stone in stones}) > 1:
            raise ValueError(
                f"milestones must ascend, and be either all fractions of num_steps (below 1) or all steps; "
                f"got {stones}."
            )
        if any(stone >= 1 and stone != int(stone) for stone in stones):
            raise ValueError(f"milestones that are steps must be whole; got {stones}.")
        return self


class ValidationConfig(Part):
    """Validation on held-out training classes; the weights of the best step are kept."""

    fraction: float = Field(0.1, gt=0, le=0.5, description="fraction of the training classes held out")
    every_steps: int = Field(200, gt=0, description="the last step is always validated")
    metric: Literal["recall_at_1", "r_precision", "map_at_r"] = "recall_at_1"


class TrainingConfig(Part):
    """Length of training, workers, precision, validation and checkpoints."""

    num_steps: int = Field(1000, gt=0, le=100_000_000, description="optimizer steps")
    num_workers: int = Field(1, ge=1, description="1: in this process; more: a Ray Train worker group")
    use_gpu: bool | None = Field(None, description="None: if there is one")
    precision: Precision = Field(
        "auto",
        description="of the encoder; auto: bfloat16 on a GPU that supports it, else float32; tf32: "
        "TensorFloat-32 for a GPU's convolutions, else float32",
    )
    channels_last: bool = True
    compile: bool = Field(False, description="torch.compile the encoder; minutes before the first step")
    ema_decay: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="publish the exponential moving average of the weights; None: the last weights",
    )
    validation: ValidationConfig | None = Field(
        None,
        description="keep the best step on held-out classes; None: train on all classes, keep the last step",
    )
    chunk_rows: int | None = Field(
        None,
        ge=1,
        description="images that a worker embeds at once, in two passes; None: its whole share in one pass",
    )
    ghost_batch_norm: bool = Field(False, description="batch norm with the statistics of each chunk")
    threads_per_worker: int | None = Field(
        None, ge=1, description="None: this machine's cores divided by the workers"
    )
    loading_processes: int | None = Field(
        None,
        ge=0,
        description="processes that decode a worker's images; 0: its threads do; None: on a GPU one a core, "
        "at most 16, else 0",
    )
    checkpoint_every_steps: int = Field(200, gt=0)
    log_every_steps: int = Field(20, gt=0)
    max_failures: int = Field(2, ge=0, description="restarts of a killed worker group")
