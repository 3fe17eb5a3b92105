"""Optimiser, schedule and what the trainer does around a step."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from dml.config.part import Part

Precision = Literal["auto", "float32", "tf32", "bfloat16"]
"""Of the encoder's products; losses are float32 in all of them."""


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

    num_steps: int = Field(1000, gt=0, le=100_000_000, description="as many as fit in days at a millisecond")
    num_workers: int = Field(1, ge=1, description="1: in this process; more: a Ray Train worker group")
    use_gpu: bool | None = Field(None, description="None: where there is one")
    precision: Precision = Field(
        "auto",
        description="of the encoder; auto: bfloat16 on a GPU that has units for it, else float32; tf32: "
        "float32, but for a GPU's convolutions",
    )
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
