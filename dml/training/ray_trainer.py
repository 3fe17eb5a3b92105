"""Train on any number of workers: one in this process, more as a Ray Train worker group.

Both write the same things to the same places, so that a killed run of either kind goes on where it was:
`STORE/runs/RUN/` holds the experiment, the checkpoints and, at the end, `result.json`.
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from pydantic import ValidationError

from dml import storage
from dml.cluster import on_cluster, ray_session, use_gpu
from dml.config import ExperimentConfig
from dml.errors import (
    CorruptArtifact,
    DmlError,
    InvalidSetting,
    MissingArtifact,
    StorageUnavailable,
    TrainingFailed,
)
from dml.models.backbones import require_weights
from dml.models.package import save_package
from dml.progress import format_time_left
from dml.refs import DatasetRef, TrainedRef
from dml.training.initial import require_initial, save_initial
from dml.training.loop import Hooks, Outcome, run_identity, train_loop
from dml.training.meter import Progress
from dml.training.train_data import DatasetTrainData
from dml.training.worker import Worker

logger = logging.getLogger(__name__)

_KEPT_CHECKPOINTS = 2
OnProgress = Callable[[Progress], None]
"""Receives rank 0's progress; picklable, since with several workers it travels to one."""


def train(
    config: ExperimentConfig, dataset: DatasetRef, store: str, on_progress: OnProgress | None = None
) -> TrainedRef:
    """Train a package, resuming a run of the same identity; a finished run's result is returned at once.

    Args:
        config: the experiment.
        dataset: a dataset version with a split `train`.
        store: the store's URI; with several machines one that all of them reach.
        on_progress: called every `log_every_steps`.

    Raises:
        TrainingFailed: the loss stopped being a number, or the workers refused their settings.
        RuntimeError: the workers died more often than `max_failures`; starting again goes on.
        InvalidData: the dataset cannot be trained on.
        InvalidSetting: nor can it with these settings, such as more classes in a batch than there are.
        MissingArtifact, CorruptArtifact, IncompatibleArtifact: the backbone's first weights, or the package
            to start from, are not there, or are others.
    """
    run = storage.join(store, "runs", run_identity(config, dataset))
    result = storage.join(run, "result.json")
    if not storage.exists(result):
        _refuse_impossible(config, dataset)  # before the run has a folder, or a lock
    with storage.folder_lock(run):  # a second training of this run waits, and then finds its result
        if not storage.exists(result):
            storage.write_json(storage.join(run, "experiment.json"), config.model_dump(mode="json"))
            storage.write_json(storage.join(run, "dataset.json"), dataset.model_dump(mode="json"))
            if config.training.num_workers == 1 and not on_cluster():
                _train_here(config, dataset, store, run, on_progress)
            else:
                _train_with_ray(config, dataset, store, run, on_progress)
            return _read_result(result)
    trained = _read_result(result)
    logger.info(
        "train: nothing to do, run %s ended with loss %.4f and package %s; another setting is another run",
        trained.run,
        trained.loss,
        trained.package.version,
    )
    return trained


def _read_result(uri: str) -> TrainedRef:
    try:
        return TrainedRef.model_validate(storage.read_json(uri))
    except ValidationError as error:
        raise CorruptArtifact(
            f"{uri} must be the result of a run; it is damaged. Remove it: then the run resumes "
            "from its last checkpoint."
        ) from error


def _train_here(
    config: ExperimentConfig, dataset: DatasetRef, store: str, run: str, on_progress: OnProgress | None
) -> None:
    _set_threads(config, here=1)
    checkpoints = storage.join(run, "checkpoints")
    device = _device(config)

    def save(step: int, folder: Path | None) -> None:
        assert folder is not None
        _publish_checkpoint(checkpoints, step, folder)

    names = storage.list_folders(checkpoints)
    newest_first = [storage.join(checkpoints, name) for name in reversed(names)]
    with _local_folders([uri for uri in newest_first if storage.is_complete(uri)]) as folders:
        hooks = Hooks(report=_log_and(config, on_progress), save=save, restore=folders)
        outcome = train_loop(config, dataset, Worker(device=device), hooks)
    _publish_result(config, dataset, store, run, outcome)


def _refuse_impossible(config: ExperimentConfig, dataset: DatasetRef) -> None:
    """Raise before anything starts what every worker would raise: no weights to start from, no batches.

    The images are opened, too: on one machine the workers find the cache made, and do not race to make it.
    """
    require_weights(config.encoder.backbone)
    require_initial(config)
    worker = Worker(world_size=config.training.num_workers)
    DatasetTrainData(config, dataset).sampler(worker, first_step=0)


@contextmanager
def _local_folders(checkpoints: Sequence[str]) -> Iterator[Iterator[Path]]:
    """Each checkpoint as a local folder, downloaded when the iterator reaches it.

    A failed download leaves an incomplete folder, which `read_checkpoint` and `verify_checkpoint` refuse.
    """
    with ExitStack() as stack:

        def fetch(uri: str) -> Path:
            if not storage.is_remote(uri):
                return Path(storage.resolve(uri))
            folder = Path(stack.enter_context(TemporaryDirectory()), uri.rpartition("/")[2])
            folder.mkdir()
            try:
                for entry in storage.files_below(uri):
                    (folder / entry.path).write_bytes(storage.read_bytes(storage.join(uri, entry.path)))
            except (OSError, MissingArtifact) as error:
                logger.warning("the checkpoint %s cannot be fetched: %s", uri, error)
            return folder

        yield map(fetch, checkpoints)


def _publish_checkpoint(checkpoints: str, step: int, folder: Path) -> None:
    final = storage.join(checkpoints, f"step-{step:08d}")
    with storage.staged(final) as staged:
        for file in folder.iterdir():
            storage.write_bytes(storage.join(staged, file.name), file.read_bytes())
        storage.delete(final)  # a damaged one, or the run would have gone on from it
        storage.publish(staged, final, {"step": step})
    for old in storage.list_folders(checkpoints)[:-_KEPT_CHECKPOINTS]:
        storage.delete(storage.join(checkpoints, old))


def _train_with_ray(
    config: ExperimentConfig, dataset: DatasetRef, store: str, run: str, on_progress: OnProgress | None
) -> None:
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    training, failure = config.training, storage.join(run, "failure.json")
    storage.delete(failure)  # of an earlier start whose driver did not live to read it
    filesystem, runs = storage.filesystem(storage.make_folder(storage.join(store, "runs")))
    with ray_session(num_cpus=max(training.num_workers, os.cpu_count() or 1)):
        on_gpu = use_gpu("train", training.num_workers, setting=training.use_gpu)
        trainer = TorchTrainer(
            _ray_worker,
            train_loop_config={
                "config": config.model_dump(mode="json"),
                "dataset": dataset.model_dump(mode="json"),
                "store": store,
                "run": run,
                "on_progress": on_progress,
            },
            scaling_config=ScalingConfig(num_workers=training.num_workers, use_gpu=on_gpu),
            run_config=RunConfig(
                name=run.rsplit("/", 1)[-1],
                storage_path=runs,
                storage_filesystem=filesystem,
                failure_config=FailureConfig(max_failures=training.max_failures),
                checkpoint_config=CheckpointConfig(num_to_keep=_KEPT_CHECKPOINTS),
            ),
        )
        try:
            trainer.fit()
        except TrainingFailedError as error:
            # Not an error of the user's; a restart may succeed.
            raise RuntimeError(
                f"The {training.num_workers} workers must finish; they failed more often than max_failures, "
                f"{training.max_failures}, last with: {error}. Start it again: the run resumes from its last "
                "checkpoint."
            ) from error
    if storage.exists(failure):
        message = storage.read_json(failure)["message"]
        storage.delete(failure)
        raise TrainingFailed(message)


def _ray_worker(arguments: dict[str, Any]) -> None:
    """What one worker of the group runs."""
    import ray.train
    import ray.train.torch
    from ray.train import Checkpoint

    config = ExperimentConfig.model_validate(arguments["config"])
    dataset = DatasetRef.model_validate(arguments["dataset"])
    logging.basicConfig(level=logging.INFO)
    context = ray.train.get_context()
    here = context.get_local_world_size()
    worker = Worker(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device(), here)
    _set_threads(config, here=here)

    def save(step: int, folder: Path | None) -> None:
        checkpoint = Checkpoint.from_directory(str(folder)) if folder else None
        ray.train.report({"step": step}, checkpoint=checkpoint)

    reported = [each.checkpoint.path for each in ray.train.get_all_reported_checkpoints()]
    names = [path.rstrip("/").rpartition("/")[2] for path in reversed(reported)]
    if worker.rank == 0:
        _delete_unreported(arguments["run"], names)
    try:
        with _local_folders([storage.join(arguments["run"], name) for name in names]) as folders:
            hooks = Hooks(report=_log_and(config, arguments["on_progress"]), save=save, restore=folders)
            outcome = train_loop(config, dataset, worker, hooks)
        if worker.rank == 0:
            _publish_result(config, dataset, arguments["store"], arguments["run"], outcome)
    except StorageUnavailable:
        raise  # it may answer when Ray tries again
    except DmlError as error:
        # Every rank raises the same error and returns: otherwise Ray would retry, and fail again.
        if worker.rank == 0:
            storage.write_json(storage.join(arguments["run"], "failure.json"), {"message": str(error)})


def _delete_unreported(run: str, reported: Sequence[str]) -> None:
    """Remove partial uploads of checkpoints, after a full disk or a kill: each restart would add one."""
    for name in storage.list_folders(run):
        if name.startswith("checkpoint_") and name not in reported:
            storage.delete(storage.join(run, name))


def _publish_result(
    config: ExperimentConfig, dataset: DatasetRef, store: str, run: str, outcome: Outcome
) -> None:
    package = save_package(
        store,
        outcome.encoder,
        config.preprocessing,
        dataset=dataset,
        initial=save_initial(store, config),
        experiment=config.model_dump(mode="json", exclude={"initial": {"uri"}}),
    )
    trained = TrainedRef(
        package=package,
        run=run_identity(config, dataset),
        loss=outcome.loss,
        images_per_second=outcome.images_per_second,
        data_wait=outcome.data_wait,
        best=outcome.best,
    )
    storage.write_json(storage.join(run, "result.json"), trained.model_dump(mode="json"))


def _log_and(config: ExperimentConfig, on_progress: OnProgress | None) -> OnProgress:
    num_steps, batch_size = config.training.num_steps, config.sampler.batch_size

    def report(progress: Progress) -> None:
        left_s = (num_steps - progress.step) * batch_size / max(progress.images_per_second, 1e-9)
        logger.info(
            "step %d of %d%s: loss %.4f, %.0f images/s, %.0f %% of the time waiting for data",
            progress.step,
            num_steps,
            f", {format_time_left(left_s)}" if progress.step < num_steps else "",
            progress.loss,
            progress.images_per_second,
            100 * progress.data_wait,
        )
        if on_progress is not None:
            on_progress(progress)

    return report


def _device(config: ExperimentConfig) -> torch.device:
    """Where this process trains; says so in the log, with the reason."""
    wanted, there_is_one = config.training.use_gpu, torch.cuda.is_available()
    if wanted and not there_is_one:
        raise InvalidSetting(
            f"use_gpu needs a GPU here; torch {torch.__version__} finds none. Set training.use_gpu=false, or "
            "null for a GPU where there is one."
        )
    device = torch.device("cpu" if wanted is False or not there_is_one else "cuda")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"
    why = "as configured" if wanted is not None else "the first GPU" if there_is_one else "no GPU is here"
    logger.info("training on %s: %s", name, why)
    return device


def _set_threads(config: ExperimentConfig, *, here: int) -> None:
    """Share the machine's cores: more OpenMP threads than cores are many times slower than fewer."""
    torch.set_num_threads(config.training.threads_per_worker or max((os.cpu_count() or 1) // here, 1))
