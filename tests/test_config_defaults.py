"""Defaults and ranges: users and stored experiments rely on them, so none changes by accident."""

from collections.abc import Iterator

import pytest
from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from dml import config
from dml.config.part import Part

RANGE = {Ge: ("ge", ">="), Gt: ("gt", ">"), Le: ("le", "<="), Lt: ("lt", "<")}

# Section: each setting with its default, and the range of a number. None is off, or chosen by what is there.
SETTINGS = """
AttributeSamplerConfig
classes_per_batch 28 >=2
samples_per_class 4 >=1
small_values pool
several_values refuse

AugmentationConfig
random_resized_crop None
horizontal_flip False
rotation 0.0 >=0 <=180
translation 0.0 >=0 <=0.5
scaling None

BenchConfig
presets ('smoke',)
losses ()
minings ()
seeds 3 >=1
settings ()
baselines ('raw pixels', 'softmax')
compare ()
compare_metric recall_at_1
parallel None >=1
reproduce None

BootstrapConfig
resamples 1000 >=1
by class
confidence 0.95 >0 <1

ClassSplit
test_fraction 0.5 >=0 <=1

Conv4Config
width 64 >0

DatasetReportConfig
classes 16 >=0
images_per_class 6 >=1
pairs 12 >=0
max_distance 6 >=0 <=64
min_similarity 0.97 >=-1 <=1
suspects 24 >=0
agreeing 5 >=2
map_points 1000 >=10
map_classes 16 >=1 <=24

EncoderConfig
pooling avg
head linear
dim 128 >0
layer_norm False
dropout 0.0 >=0 <1
freeze_batch_norm False
unit_length True

EvaluationConfig
recall_at (1, 2, 4, 8)
precision_at ()
map_at ()
map_denominators ('relevant', 'attainable')
full_map False
macro False
slices ()
role_attribute None
same_camera_attribute None
bootstrap None
false_accept_rates ()
few_shot None
nmi True
nmi_average arithmetic
ami False
kmeans_seeds None >=1
baselines True

ExperimentConfig
seed 0 >=0 <2147483648
initial None
memory None

FewShotConfig
ways 20 >=2
shots (1, 5)
queries_per_class 5 >=1
episodes 1000 >=2
within None

GateConfig
metric recall_at_1
at_least None
min_gain 0.0 >-1 <1
confidence None

IndexConfig
factory auto
recall 0.95 >=0.5 <=1
latency_ms 5.0 >0
memory_gb None >0
vectors float32
num_probes None >0
recall_queries 2000 >0
order_by None
first_stage None
shards 1 >0

IngestConfig
layout auto
split None
max_pixels 64000000 >0 <=64000000
max_bytes 67108864 >0 <2147483648
allowed_prefixes ()
timeout_s 30.0 >0
retries 3 >=0
quarantine_contradictions False
max_quarantined 0.05 >=0 <=1
rows_per_fragment 1024 >0
rows_per_group 128 >0
bytes_per_group 134217728 >0 <2147483648
num_workers None >=1

InitialConfig
model None
tune whole

LoraConfig
rank 8 >=1
alpha 16.0 >0

OptimizerConfig
learning_rate 0.0001 >0
head_learning_rate None >0
loss_learning_rate None >0
weight_decay 0.0001 >=0
loss_weight_decay None >=0
momentum 0.9 >=0 <1
warmup_steps 0 >=0
freeze_backbone_steps 0 >=0
schedule cosine
milestones ()
gamma 0.1 >0 <1
clip_norm None >0

PreprocessingConfig
color RGB
resize 256 >0
crop 224 >0
crop_mode center
height None >0
interpolation bilinear
channel_order RGB
mean (0.485, 0.456, 0.406)
std (0.229, 0.224, 0.225)

RefreshConfig
timezone UTC

ReportConfig
split test
queries 8 >=0
answers 8 >=1
failures 12 >=0
suspects 24 >=0
agreeing 5 >=2
false_accept_rates (0.001, 0.01, 0.1)
map_points 1000 >=10
map_classes 16 >=1 <=24

SamplerConfig
classes_per_batch 28 >=2
samples_per_class 4 >=1

ShuffledSamplerConfig
batch_size 112 >=2

SimilarSamplerConfig
classes_per_batch 28 >=2
samples_per_class 4 >=1
seeds_per_batch 1 >=1
refresh_every_steps 100 >0
momentum 0.5 >=0 <1

TimmConfig
name resnet50
pretrained False
weights None

TorchvisionConfig
name squeezenet1_1
pretrained False
weights None

TrainingConfig
num_steps 1000 >0 <=100000000
num_workers 1 >=1
use_gpu None
precision auto
channels_last True
compile False
ema_decay None >0 <1
validation None
chunk_rows None >=1
ghost_batch_norm False
threads_per_worker None >=1
loading_processes None >=0
checkpoint_every_steps 200 >0
log_every_steps 20 >0
max_failures 2 >=0

TransformersConfig
weights None

ValidationConfig
fraction 0.1 >0 <=0.5
every_steps 200 >0
metric recall_at_1
"""


def section(name: str) -> type[Part]:
    made: type[Part] = getattr(config, name)
    return made


def ranges(field: FieldInfo) -> Iterator[tuple[str, float]]:
    """A sign and a limit, for each limit of a number."""
    for each in field.metadata:
        for kind, (name, sign) in RANGE.items():
            if isinstance(each, kind):
                yield sign, getattr(each, name)


def lines(name: str) -> list[str]:
    return [
        " ".join(
            [
                setting,
                str(field.get_default(call_default_factory=True)),
                *(f"{s}{b}" for s, b in ranges(field)),
            ]
        )
        for setting, field in section(name).model_fields.items()
        if setting != "kind" and not field.is_required() and not isinstance(field.default, Part)
    ]


STATED = {
    block.partition("\n")[0]: block.splitlines()[1:] for block in SETTINGS.strip().split("\n\n") if block
}


@pytest.mark.parametrize("name", STATED)
def test_every_setting_has_the_default_and_the_range_that_are_stated(name):
    assert lines(name) == STATED[name]


def test_every_section_is_stated():
    sections = {
        n for n in dir(config) if isinstance(getattr(config, n), type) and issubclass(section(n), Part)
    }
    assert set(STATED) == {
        name for name in sections if lines(name) and not hasattr(section(name), "signature")
    }
