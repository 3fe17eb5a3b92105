"""Configuration of experiments, ingests and benches: frozen, and validated completely before anything starts.

A configuration comes from a preset or from a YAML or JSON file. `ExperimentConfig.model_json_schema()`
documents every field.
"""

from dml.config.bench import BenchConfig, parse_bench
from dml.config.data import (
    MAX_PIXELS,
    AttributeSamplerConfig,
    AttributeSplit,
    AugmentationConfig,
    BatchesConfig,
    ClassSplit,
    IngestConfig,
    NoSplit,
    OfficialSplit,
    PreprocessingConfig,
    SamplerConfig,
    ShuffledSamplerConfig,
    SimilarSamplerConfig,
    SourceLayout,
    SplitConfig,
    parse_ingest,
)
from dml.config.encoder import (
    BackboneConfig,
    Conv4Config,
    EncoderConfig,
    TimmConfig,
    TorchvisionConfig,
    TorchvisionNetwork,
    TransformersConfig,
)
from dml.config.evaluation import (
    BootstrapConfig,
    DatasetReportConfig,
    EvaluationConfig,
    FewShotConfig,
    GateConfig,
    IndexConfig,
    Rank,
    Rate,
    RefreshConfig,
    ReportConfig,
)
from dml.config.experiment import ExperimentConfig, parse_experiment, read_experiment
from dml.config.losses import (
    LossConfig,
    LossPart,
    MemoryConfig,
    Mining,
    loss_config,
    loss_kinds,
    takes_mining,
)
from dml.config.part import Part
from dml.config.text import to_yaml
from dml.config.training import OptimizerConfig, TrainingConfig, ValidationConfig

__all__ = [
    "MAX_PIXELS",
    "AttributeSamplerConfig",
    "AttributeSplit",
    "AugmentationConfig",
    "BackboneConfig",
    "BatchesConfig",
    "BenchConfig",
    "BootstrapConfig",
    "ClassSplit",
    "Conv4Config",
    "DatasetReportConfig",
    "EncoderConfig",
    "EvaluationConfig",
    "ExperimentConfig",
    "FewShotConfig",
    "GateConfig",
    "IndexConfig",
    "IngestConfig",
    "LossConfig",
    "LossPart",
    "MemoryConfig",
    "Mining",
    "NoSplit",
    "OfficialSplit",
    "OptimizerConfig",
    "Part",
    "PreprocessingConfig",
    "Rank",
    "Rate",
    "RefreshConfig",
    "ReportConfig",
    "SamplerConfig",
    "ShuffledSamplerConfig",
    "SimilarSamplerConfig",
    "SourceLayout",
    "SplitConfig",
    "TimmConfig",
    "TorchvisionConfig",
    "TorchvisionNetwork",
    "TrainingConfig",
    "TransformersConfig",
    "ValidationConfig",
    "loss_config",
    "loss_kinds",
    "parse_bench",
    "parse_experiment",
    "parse_ingest",
    "read_experiment",
    "takes_mining",
    "to_yaml",
]
