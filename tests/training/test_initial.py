"""Training that starts from a package of the store: what it begins with, trains and leaves."""

import shutil
from pathlib import Path

import pytest
import timm
import torch
import torch.distributed as dist
from safetensors.torch import save_file

from dml.config import ExperimentConfig, IngestConfig
from dml.data.dataset import read_images
from dml.data.ingest import ingest
from dml.errors import IncompatibleArtifact, InvalidSetting
from dml.lineage import unneeded
from dml.models.encoder import Encoder
from dml.models.external import Options, import_embedder
from dml.models.package import load_package, save_package
from dml.presets import experiment
from dml.refs import DatasetRef, ModelRef, PackageRef
from dml.training.initial import initial_encoder, start_from
from dml.training.loop import Hooks, run_identity, train_loop
from dml.training.ray_trainer import train
from dml.training.spawn import run_ranks
from dml.training.worker import Worker
from tests.bright_faces import write_detector

SETTINGS = [
    "training.threads_per_worker=1",
    "training.num_steps=6",
    "training.checkpoint_every_steps=3",
    "training.log_every_steps=3",
    "sampler.classes_per_batch=4",
]
GENTLE = ["optimizer.kind=sgd", "optimizer.learning_rate=0.001", 'loss={"kind":"sup_con"}']
"""Adam would blow gradients of rounding size up to full steps."""


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return str(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def dataset(store):
    return ingest(IngestConfig(name="tiny", source="glyphs:classes=16,per_class=4", num_workers=1), store)


@pytest.fixture(scope="module")
def imported(store, tmp_path_factory):
    """A transformer of timm, without a head, as it was imported."""
    torch.manual_seed(0)
    network, file = (
        timm.create_model("test_vit.r160_in1k"),
        tmp_path_factory.mktemp("weights") / "w.safetensors",
    )
    save_file(network.state_dict(), file)
    package = import_embedder(store, "timm:test_vit.r160_in1k", Options(weights=file))
    return ModelRef(name="photos", version=1, package=package)


@pytest.fixture(scope="module")
def trained(store):
    """A convolution network with batch norm and a head, as one trained here."""
    config = experiment("smoke")
    package = save_package(store, Encoder(config.encoder, channels=1, seed=5), config.preprocessing)
    return ModelRef(name="drawings", version=1, package=package)


def configured(model: ModelRef, tune: str, settings: list[str] = SETTINGS) -> ExperimentConfig:
    return start_from(experiment("smoke"), model, tune).overridden(settings)


def images(dataset: DatasetRef) -> list[bytes]:
    return read_images(dataset, list(range(8)))


@pytest.mark.parametrize("model", ["imported", "trained"])
def test_a_run_begins_with_the_embeddings_of_its_package(model, dataset, request):
    model = request.getfixturevalue(model)
    config = configured(model, "whole")
    package = load_package(model.package.uri)
    assert config.preprocessing == package.preprocessing
    pixels = torch.stack([package.prepare(image) for image in images(dataset)])
    with torch.inference_mode():
        begins = initial_encoder(config).eval()(pixels)
    torch.testing.assert_close(begins.numpy(), package.embed(images(dataset)), rtol=0, atol=1e-6)


def changed(before: PackageRef, after: PackageRef) -> set[str]:
    """The parts of the encoder whose weights differ."""
    first, last = (load_package(package.uri).encoder.state_dict() for package in (before, after))
    return {
        name.partition(".")[0] for name in last if not torch.equal(last[name], first.get(name, last[name]))
    }


@pytest.mark.parametrize(
    ("tune", "trains"), [("frozen", set()), ("lora", {"backbone"}), ("whole", {"backbone"})]
)
@pytest.mark.parametrize("model", ["imported", "trained"])
def test_what_is_tuned_changes_and_nothing_else_does(model, tune, trains, dataset, store, request):
    model = request.getfixturevalue(model)
    result = train(configured(model, tune), dataset, store)
    package = load_package(result.package.uri)
    assert changed(model.package, result.package) - {"head"} == trains
    assert package.encoder.state_dict().keys() >= {"head.weight", "head.bias"}
    assert not any("parametrizations" in name for name in package.encoder.state_dict())
    assert result.package.initial == model.package


def test_batch_norm_statistics_are_the_packages_where_adapters_train(trained, dataset, store):
    result = train(configured(trained, "lora"), dataset, store)
    before, after = (load_package(p.uri).encoder.state_dict() for p in (trained.package, result.package))
    statistics = [name for name in before if "running" in name]
    assert statistics
    assert all(torch.equal(before[name], after[name]) for name in statistics)


def test_another_length_of_embeddings_is_a_new_head_and_its_start_names_the_package(imported, dataset, store):
    config = configured(imported, "frozen", [*SETTINGS, "encoder.dim=16"])
    result = train(config, dataset, store)
    assert result.package.dim == 16
    assert result.package.initial.dim == 16
    assert result.package.initial.initial == imported.package


def test_the_identity_of_a_run_has_the_package_and_not_its_folder(imported, trained, dataset, tmp_path):
    config = configured(imported, "whole")
    moved = config.overridden([f"initial.uri={tmp_path}", "initial.model=other/7"])
    other = config.overridden([f"initial.fingerprint={trained.package.fingerprint}"])
    assert run_identity(moved, dataset) == run_identity(config, dataset)
    assert run_identity(other, dataset) != run_identity(config, dataset)
    assert run_identity(configured(imported, "lora"), dataset) != run_identity(config, dataset)


def test_the_package_says_what_it_started_from_and_keeps_it(imported, dataset, store):
    result = train(configured(imported, "whole"), dataset, store)
    description = Path(result.package.uri, "package.json").read_text()
    assert imported.package.fingerprint in description
    assert store not in description
    removed = {removal.uri for removal in unneeded(store, [result.package.model_dump(mode="json")])}
    assert imported.package.uri not in removed


def run(
    config: ExperimentConfig, dataset: DatasetRef, kept: Path | None, restore: Path | None
) -> dict[str, torch.Tensor] | None:
    """The encoder's weights; None where it was to die at the second checkpoint, after keeping the first."""
    grouped = dist.is_initialized()
    worker = Worker(dist.get_rank(), dist.get_world_size()) if grouped else Worker()

    def save(step: int, folder: Path | None) -> None:
        if folder is not None and kept is not None and step == 3:
            shutil.copytree(folder, kept)
        if kept is not None and step == 6:
            raise Killed

    hooks = Hooks(report=lambda progress: None, save=save, restore=[restore] if restore else ())
    try:
        return dict(train_loop(config, dataset, worker, hooks).encoder.state_dict())
    except Killed:
        return None


@pytest.mark.parametrize("tune", ["lora", "whole"])
def test_a_killed_run_ends_with_the_weights_of_one_that_was_not_to_the_bit(tune, imported, dataset, tmp_path):
    config = configured(imported, tune, [*SETTINGS, "training.ema_decay=0.9"])
    undisturbed = run(config, dataset, None, None)
    assert run(config, dataset, tmp_path / "kept", None) is None
    resumed = run(config, dataset, None, tmp_path / "kept")
    assert all(torch.equal(resumed[name], undisturbed[name]) for name in undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("tune", ["frozen", "lora", "whole"])
@pytest.mark.parametrize("model", ["imported", "trained"])
def test_two_workers_end_with_the_weights_of_one(model, tune, dataset, request):
    config = configured(request.getfixturevalue(model), tune, [*SETTINGS, *GENTLE])
    alone = run(config, dataset, None, None)
    for weights in run_ranks(2, run, config, dataset, None, None):
        for name, value in alone.items():
            torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_what_torch_does_not_compute_is_refused_with_what_to_do(store, tmp_path, monkeypatch):
    (tmp_path / "my_embedder.py").write_text(
        "def embed(images):\n    return [[image[..., 0].mean(), 1.0] for image in images]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    package = import_embedder(store, "python:my_embedder:embed", Options())
    (tmp_path / "my_embedder.py").unlink()  # nor need it be there to say so
    model = ModelRef(name="mine", version=1, package=package)
    with pytest.raises(IncompatibleArtifact, match=r"mine/1, python:my_embedder:embed, is none. Import its"):
        start_from(experiment("smoke"), model, "whole")


def test_a_model_that_detects_faces_is_not_trained_on_whole_images(store, tmp_path):
    pytest.importorskip("cv2")
    timm_weights = tmp_path / "tiny.safetensors"
    save_file(timm.create_model("test_vit.r160_in1k").state_dict(), timm_weights)
    options = Options(weights=timm_weights, detector=write_detector(tmp_path / "yunet.onnx"))
    package = import_embedder(store, "timm:test_vit.r160_in1k", options)
    with pytest.raises(IncompatibleArtifact, match="people/1 embeds the face that it detects"):
        start_from(experiment("smoke"), ModelRef(name="people", version=1, package=package), "whole")


def test_another_backbone_than_the_packages_is_refused_before_training(imported, dataset, store):
    config = configured(
        imported, "whole", [*SETTINGS, "encoder.backbone.kind=torchvision", "encoder.pooling=avg"]
    )
    with pytest.raises(InvalidSetting, match=r"encoder.backbone must be that of the package"):
        train(config, dataset, store)


def test_a_package_that_was_replaced_is_refused(imported, trained, dataset, store):
    config = configured(imported, "whole", [*SETTINGS, f"initial.uri={trained.package.uri}", "seed=9"])
    with pytest.raises(IncompatibleArtifact, match="must start from the package"):
        train(config, dataset, store)
