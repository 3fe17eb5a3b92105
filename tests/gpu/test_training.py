"""On a GPU the trainer's step, checkpoints and batch norm are the CPU's, and no step waits for the device."""

import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor, nn

from dml.config import ExperimentConfig, IngestConfig
from dml.data.batches import Batch
from dml.data.ingest import ingest
from dml.data.sampling import BatchSampler
from dml.errors import TrainingFailed
from dml.models.precision import choose_precision, convolutions_in
from dml.presets import experiment
from dml.training.batch_norm import GlobalBatchNorm2d, GlobalBatchNormOnGpus, synchronize_batch_norm
from dml.training.loop import Hooks, Outcome, train_loop, train_on
from dml.training.state import TrainingState
from dml.training.validation import ValidationSet
from dml.training.worker import Worker
from tests.gpu.waits import host_waits

pytestmark = pytest.mark.gpu
CPU = torch.device("cpu")
CLASSES, PER_CLASS, STEPS = 8, 4, 8
# Multi-similarity asks once how large the largest class of a batch is: see test_losses.py.
WAITS_OF_A_STEP = {"dml/losses/core/pair_loss.py:__init__": 1}
EVERYTHING = ["training.ema_decay=0.9", "optimizer.clip_norm=1", "encoder.pooling=gem", "encoder.dropout=0.1"]


def configured(*settings: str) -> ExperimentConfig:
    return experiment("smoke").overridden(
        [
            f"training.num_steps={STEPS}",
            "training.checkpoint_every_steps=4",
            "training.log_every_steps=1",
            "training.precision=float32",
            "training.threads_per_worker=1",
            f"sampler.classes_per_batch={CLASSES}",
            f"sampler.samples_per_class={PER_CLASS}",
            # A gentle SGD: Adam would blow gradients of rounding size up to full steps.
            "optimizer.kind=sgd",
            "optimizer.learning_rate=0.01",
            *settings,
        ]
    )


@dataclass
class Noise:
    """Batches of the same noise for any device; `waits` collects where steps waited, after the first two."""

    device: torch.device
    broken_at: int | None = None
    num_classes: int = CLASSES
    validation: ValidationSet | None = None
    sampler: BatchSampler | None = None
    wait_s: float = 0.0
    first_step: int = 0
    watched: bool = False
    waits: list[str] = field(default_factory=list)

    def batches(self, worker: Worker, first_step: int) -> "Noise":
        self.first_step = first_step
        return self

    def __iter__(self) -> Iterator[Batch]:
        for step in range(self.first_step, STEPS):
            batch = self._batch(step)
            if self.watched and 2 <= step < STEPS - 1:
                with host_waits(self.device) as waits:
                    yield batch  # until the loop asks for the next: all of the step
                self.waits += waits
            else:
                yield batch

    def _batch(self, step: int) -> Batch:
        generator = torch.Generator().manual_seed(step)
        labels = torch.arange(CLASSES).repeat_interleave(PER_CLASS)
        images = torch.randn(len(labels), 1, 28, 28, generator=generator) + labels[:, None, None, None] / 4
        if step == self.broken_at:
            images[3, 0, 0, 0] = torch.nan
        if self.device.type == "cuda":
            images, labels = images.pin_memory(), labels.pin_memory()
        return images, labels, np.arange(len(labels)) + 1000 * step

    def ids(self, positions: object) -> list[str]:
        return [f"image-{position}" for position in positions]

    def close(self) -> None:
        pass


def train(
    device: torch.device,
    *settings: str,
    train_data: Noise | None = None,
    keep: Path | None = None,
    restore: list[Path] | None = None,
) -> tuple[Outcome, list[float]]:
    losses: list[float] = []

    def save(step: int, folder: Path | None) -> None:
        if keep is not None and folder is not None:
            folder.rename(keep / str(step))
            folder.mkdir()  # the loop removes it

    hooks = Hooks(report=lambda p: losses.append(p.loss), save=save, restore=restore or [])
    train_data = train_data or Noise(device)
    outcome = train_on(train_data, configured(*settings), Worker(device=device), hooks, run="gpu")
    return outcome, losses


@pytest.mark.parametrize(
    "settings",
    [
        [],
        EVERYTHING[:3],
        ["optimizer.kind=adamw", "optimizer.learning_rate=0.0001"],
        ['loss={"kind":"proxy_anchor"}'],
        ["training.chunk_rows=8", "training.ghost_batch_norm=true"],
        ["optimizer.freeze_backbone_steps=3"],
    ],
    ids=["plain", "average", "adamw", "proxies", "chunks", "frozen-first"],
)
def test_the_loss_curve_is_the_cpus(settings, device):
    _, expected = train(CPU, *settings)
    _, actual = train(device, *settings)
    assert len(actual) == STEPS
    assert actual == pytest.approx(expected, rel=5e-3)


@pytest.mark.parametrize("precision", ["auto", "tf32", "bfloat16"])
def test_less_precision_stays_close_and_embeddings_are_float32(precision, device):
    _, exact = train(device)
    outcome, actual = train(device, f"training.precision={precision}")
    assert actual == pytest.approx(exact, rel=0.1)
    images = Noise(CPU)._batch(0)[0].to(device)
    with torch.no_grad():
        embeddings = outcome.encoder.eval()(images)
    assert embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings.norm(dim=1).cpu(), torch.ones(len(images)))


def test_auto_says_what_it_is(device):
    chosen, why = choose_precision("auto", device)
    if device.type == "cpu":
        assert chosen == "float32"
    else:
        has_units = torch.cuda.get_device_capability(device) >= (8, 0)
        assert chosen == ("bfloat16" if has_units else "float32")
        assert torch.cuda.get_device_name(device) in why


def test_float32_convolutions_are_exact_although_torch_would_round_them(device):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 64, 8, 8, generator=generator)
    layer = nn.Conv2d(64, 64, 3, bias=False)
    expected = nn.functional.conv2d(images.double(), layer.weight.double())
    torch.backends.cudnn.allow_tf32 = True
    with convolutions_in("float32"), torch.no_grad():
        actual = layer.to(device)(images.to(device))
    assert torch.backends.cudnn.allow_tf32, "what the caller had is put back"
    torch.testing.assert_close(actual.cpu().double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("settings", [[], EVERYTHING, ["optimizer.kind=adamw"]], ids=["sgd", "all", "adamw"])
def test_a_step_waits_for_the_device_only_at_known_places(settings, device):
    train_data = Noise(device, watched=True)
    # No report and no checkpoint among the steps that are watched: those must look at the losses.
    quiet = ["training.log_every_steps=100", "training.checkpoint_every_steps=100"]
    train(device, *quiet, *settings, train_data=train_data)
    if device.type == "cpu":  # the guard looks at numbers at once, and torch's AdamW counts steps in Python
        of_a_cpu = ("dml/training/guard.py:flush", "dml/training/step.py:train_step")
        train_data.waits = [place for place in train_data.waits if place not in of_a_cpu]
    watched_steps = STEPS - 3
    for place, times in Counter(train_data.waits).items():
        assert times <= WAITS_OF_A_STEP.get(place, 0) * watched_steps, f"{place} waits {times} times"


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_a_checkpoint_brings_back_every_number_and_its_place_in_memory(kind, device, tmp_path):
    settings = [f"optimizer.kind={kind}", "training.ema_decay=0.9"]
    train(device, *settings, keep=tmp_path)
    read = TrainingState(configured(*settings), CLASSES, Worker(device=device), "gpu")
    assert read.read(tmp_path / "4") == 4
    again = tmp_path / "again"
    again.mkdir()
    read.write(again, 4)
    names = sorted(path.name for path in again.glob("*.safetensors"))
    assert names == sorted(path.name for path in (tmp_path / "4").glob("*.safetensors"))
    for name in names:
        assert (again / name).read_bytes() == (tmp_path / "4" / name).read_bytes(), name
    for parameter, moments in read.optimizer.state.items():
        for moment in moments.values():
            if moment is not None and moment.shape == parameter.shape and moment.ndim == 4:
                assert moment.stride() == parameter.stride()
                assert moment.device == parameter.device


def test_a_resumed_run_continues_as_the_undisturbed_one(device, tmp_path):
    """Close, not bitwise: a GPU adds in any order. On a CPU tests/training proves it bitwise."""
    settings = ["training.ema_decay=0.9", "optimizer.kind=adamw", "optimizer.learning_rate=0.0001"]
    _, whole = train(device, *settings, keep=tmp_path)
    _, resumed = train(device, *settings, restore=[tmp_path / "4"])
    assert resumed == pytest.approx(whole[4:], rel=1e-3)


def test_a_number_that_is_none_is_named_with_its_own_step_and_images(device):
    """On a GPU it is looked at one step later, and must not be named with that step's images."""
    with pytest.raises(TrainingFailed, match=r"at step 5, .*image-5003"):
        train(device, train_data=Noise(device, broken_at=5))


def class_folders(folder: Path, *, num_classes: int, per_class: int) -> str:
    """Pictures of noise; drawn characters would need the fonts that Matplotlib brings."""
    generator = np.random.default_rng(0)
    for label in range(num_classes):
        (folder / f"class {label}").mkdir(parents=True)
        for number in range(per_class):
            pixels = generator.integers(label, label + 200, (28, 28)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"class {label}" / f"{number}.png")
    return str(folder)


def test_a_whole_run_from_a_dataset(device, tmp_path):
    source = class_folders(tmp_path / "images", num_classes=40, per_class=5)
    dataset = ingest(IngestConfig(name="tiny", source=source, num_workers=1), str(tmp_path / "store"))
    config = configured(
        "training.precision=auto",
        'training.validation={"every_steps":4}',
        "sampler.kind=similar",
        "sampler.classes_per_batch=5",
        "sampler.refresh_every_steps=4",
        "augmentation.rotation=10",
    )
    hooks = Hooks(report=lambda p: None, save=lambda step, folder: None)
    outcome = train_loop(config, dataset, Worker(device=device), hooks)
    assert np.isfinite(outcome.loss)
    assert outcome.best is not None


@pytest.fixture
def group_of_one(device: torch.device) -> Iterator[None]:
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            init_method=f"file://{folder}/rendezvous",
            rank=0,
            world_size=1,
        )
        yield
        dist.destroy_process_group()


def values(layer: nn.Module, images: Tensor) -> list[Tensor]:
    x = images.clone().requires_grad_()
    layer(x).square().sum().backward()
    return [x.grad, *(parameter.grad for parameter in layer.parameters()), *layer.buffers()]


def test_batch_norm_over_one_rank_is_torchs_own(device, group_of_one):
    images = torch.randn(6, 5, 4, 4, generator=torch.Generator().manual_seed(0)).to(device)
    alone, shared = nn.Sequential(nn.BatchNorm2d(5)).to(device), nn.Sequential(nn.BatchNorm2d(5)).to(device)
    synchronize_batch_norm(shared, device)
    kind = GlobalBatchNormOnGpus if device.type == "cuda" else GlobalBatchNorm2d
    assert type(shared[0]) is kind
    torch.testing.assert_close(values(shared, images), values(alone, images), rtol=1e-5, atol=1e-6)


def test_one_rank_trains_with_torchs_own_batch_norm(device):
    state = TrainingState(configured(), CLASSES, Worker(device=device), "gpu")
    layers = [m for m in state.encoder.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert {type(layer) for layer in layers} == {nn.BatchNorm2d}


def test_a_gpu_updates_all_parameters_at_once(device):
    state = TrainingState(configured("optimizer.kind=adamw"), CLASSES, Worker(device=device), "gpu")
    assert [group["fused"] for group in state.optimizer.param_groups] == [
        True if device.type == "cuda" else None
    ] * len(state.optimizer.param_groups)
