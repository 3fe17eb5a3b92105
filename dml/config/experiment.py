"""Configuration of one experiment, with checks across its sections."""

import math
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from dml.config.data import (
    AugmentationConfig,
    BatchesConfig,
    PreprocessingConfig,
    SamplerConfig,
    ShuffledSamplerConfig,
)
from dml.config.encoder import EncoderConfig
from dml.config.evaluation import EvaluationConfig, GateConfig
from dml.config.losses import LossConfig, MemoryConfig, loss_config, loss_kinds
from dml.config.part import Part, parse
from dml.config.text import read_tree
from dml.config.training import InitialConfig, OptimizerConfig, TrainingConfig

_CONV4_MIN_SIDE = 16


class ExperimentConfig(Part):
    """All settings of a training run, except the dataset version."""

    name: str = Field(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9._-]*$", description="a label, which names the runs")
    seed: int = Field(0, ge=0, lt=2**31)
    preprocessing: PreprocessingConfig = PreprocessingConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    encoder: EncoderConfig = EncoderConfig()
    initial: InitialConfig | None = Field(
        None, description="None: the encoder starts as `encoder` says, else from a package"
    )
    sampler: BatchesConfig = SamplerConfig()
    loss: LossConfig = loss_config("multi_similarity")
    memory: MemoryConfig | None = Field(None, description="None: the loss sees only its batch")
    optimizer: OptimizerConfig = OptimizerConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    gate: GateConfig = GateConfig()

    @property
    def freeze_backbone_steps(self) -> int:
        """First steps in which the backbone keeps its weights: all, where only the head is trained."""
        if self.initial is not None and self.initial.tune == "frozen":
            return self.training.num_steps
        return self.optimizer.freeze_backbone_steps

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        self._check_workers()
        self._check_memory()
        self._check_pairs()
        self._check_similar_sampler()
        self._check_chunks()
        self._check_backbone()
        self._check_head()
        self._check_lengths()
        self._check_milestones()
        self._check_gate()
        return self

    def _check_workers(self) -> None:
        workers, sampler = self.training.num_workers, self.sampler
        if sampler.batch_size % workers:
            if isinstance(sampler, ShuffledSamplerConfig):
                what, number, unit = "batch_size", sampler.batch_size, workers
            else:
                what, number = "classes_per_batch", sampler.classes_per_batch
                unit = workers // math.gcd(workers, sampler.samples_per_class)
            nearest = f"Nearest below: {number - number % unit}" if number >= unit else f"Least: {unit}"
            raise ValueError(
                f"Every worker gets the same number of images of a batch, so {what} must be a multiple of "
                f"{unit} for {workers} workers; got {number}. {nearest}, or take fewer workers."
            )

    def _check_memory(self) -> None:
        memory = self.memory
        if memory is None:
            return
        if self.loss.within_batch:
            mines_n_pairs = getattr(self.loss, "mining", None) == "n_pair"
            what = "n-pair mining" if mines_n_pairs else f"the {self.loss.kind} loss"
            raise ValueError(
                f"A memory needs a pair loss whose references can come from former batches; got {what}. Set "
                "memory to null, or choose another loss."
            )
        if memory.start_after >= self.training.num_steps:
            raise ValueError(
                f"memory.start_after must be less than num_steps, otherwise the memory is never used; got "
                f"{memory.start_after} and {self.training.num_steps}."
            )

    def _check_pairs(self) -> None:
        if self.loss.has_proxies:
            return
        sampler = self.sampler
        if isinstance(sampler, ShuffledSamplerConfig):
            raise ValueError(
                f"The {self.loss.kind} loss learns from pairs of the same class, which a shuffled batch "
                "may not contain; got sampler kind 'shuffled'. Take kind 'pk', or a proxy loss."
            )
        if sampler.samples_per_class < 2:
            raise ValueError(
                f"The {self.loss.kind} loss learns from pairs of the same class, so samples_per_class "
                f"must be at least 2; got {sampler.samples_per_class}."
            )

    def _check_similar_sampler(self) -> None:
        if self.sampler.kind == "similar" and getattr(self.loss, "sharded", False):
            raise ValueError(
                "The similar sampler compares the proxies of all classes, so every worker must have all of "
                "them; got loss.sharded. Take another sampler, or sharded=false."
            )

    def _check_chunks(self) -> None:
        share = self.sampler.batch_size // self.training.num_workers
        chunk_rows, ghost = self.training.chunk_rows, self.training.ghost_batch_norm
        if ghost and chunk_rows is None:
            raise ValueError("ghost_batch_norm normalises chunks, so chunk_rows must be a number; got None.")
        if ghost and self.encoder.freeze_batch_norm:
            raise ValueError("A batch norm is either ghost_batch_norm or freeze_batch_norm; got both.")
        if ghost and chunk_rows is not None and share % chunk_rows:
            raise ValueError(
                f"With ghost_batch_norm chunk_rows must divide a worker's share of the batch, so that any "
                f"number of workers forms the same chunks; got {chunk_rows} and a share of {share}."
            )
        backbone = self.encoder.backbone
        normalizes = backbone.kind == "conv4" or (
            backbone.kind == "torchvision" and backbone.name != "squeezenet1_1"
        )
        if chunk_rows is not None and normalizes and not (ghost or self.encoder.freeze_batch_norm):
            raise ValueError(
                f"chunk_rows changes the statistics of batch norm, and {backbone.kind} has batch norms. Set "
                "encoder.freeze_batch_norm, or training.ghost_batch_norm to normalise each chunk separately."
            )

    def _check_backbone(self) -> None:
        kind, color = self.encoder.backbone.kind, self.preprocessing.color
        if kind != "conv4" and color != "RGB":
            raise ValueError(f"The {kind} backbones take RGB images; got color {color!r}.")
        if kind == "conv4" and min(self.preprocessing.size) < _CONV4_MIN_SIDE:
            raise ValueError(
                f"conv4 halves the image four times, so crop must be at least {_CONV4_MIN_SIDE}; got "
                f"{min(self.preprocessing.size)}."
            )
        if kind not in ("timm", "transformers") and self.encoder.pooling == "own":
            raise ValueError(
                f"pooling 'own' is a timm backbone's pooling; got backbone {kind!r}. Take another pooling."
            )
        if self.preprocessing.crop_mode == "none":
            raise ValueError(
                "A batch's images have one size, so preprocessing.crop_mode must be 'center', 'squash' or "
                "'border' to train; got 'none'."
            )

    def _check_head(self) -> None:
        frozen = self.freeze_backbone_steps
        if self.encoder.head == "none" and frozen:
            raise ValueError(
                "Without a head nothing is left to train while the backbone is frozen; got encoder.head "
                f"'none' and a backbone that is frozen for {frozen} steps. Set encoder.head=linear, or train "
                "the backbone: optimizer.freeze_backbone_steps=0, and initial.tune=whole where it is set."
            )

    def _check_lengths(self) -> None:
        if not self.encoder.unit_length and not self.loss.is_classification:
            kinds = [kind for kind in loss_kinds() if loss_config(kind).is_classification]
            raise ValueError(
                "encoder.unit_length=false lets a classification loss see the lengths of embeddings, so the "
                f"loss must be one of {', '.join(kinds)}; got {self.loss.kind}. Take one of them, or "
                "encoder.unit_length=true."
            )

    def _check_milestones(self) -> None:
        late = [stone for stone in self.optimizer.milestones if stone >= self.training.num_steps]
        if late:
            raise ValueError(
                f"optimizer.milestones must come before the last step; got {late} of "
                f"{self.training.num_steps} steps. Use fractions of num_steps, below 1, to follow it."
            )

    def _check_gate(self) -> None:
        if self.gate.metric not in self.evaluation.metrics:
            raise ValueError(
                f"gate.metric must be one of the evaluation's metrics, {self.evaluation.metrics}; got "
                f"{self.gate.metric!r}."
            )
        if isinstance(self.gate.at_least, str) and not self.evaluation.baselines:
            raise ValueError(
                f"gate.at_least {self.gate.at_least!r} is a baseline of the evaluation, so "
                "evaluation.baselines must be true; got false."
            )
        if self.gate.confidence is not None and self.gate.metric not in self.evaluation.query_metrics:
            raise ValueError(
                f"gate.confidence compares query by query, so gate.metric must be one of "
                f"{self.evaluation.query_metrics}; got {self.gate.metric!r}."
            )


def parse_experiment(tree: Any) -> ExperimentConfig:
    """The experiment that a JSON tree describes; raises InvalidSetting with every invalid setting."""
    return parse(ExperimentConfig, tree)


def read_experiment(path: str | Path) -> ExperimentConfig:
    """The experiment in a YAML or JSON file; raises InvalidSetting if it cannot be read or is invalid."""
    return parse_experiment(read_tree(path, ExperimentConfig))
