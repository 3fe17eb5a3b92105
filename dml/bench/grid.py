"""From a bench's configuration to its cells: everything that cannot be followed is refused here."""

from dml import presets
from dml.bench import published
from dml.bench.cell import RAW_PIXELS, Cell, Row, find_report, make_cell
from dml.bench.pairs import check_comparisons
from dml.bench.reproduce import REPRODUCTIONS
from dml.config import BenchConfig, ExperimentConfig, Mining, loss_kinds, takes_mining
from dml.data.dataset import find_dataset
from dml.data.evaluable import require_evaluable
from dml.errors import IncompatibleArtifact, InvalidData, InvalidSetting, MissingArtifact
from dml.models.backbones import require_weights
from dml.refs import DatasetRef

_SET_BY_THE_GRID = ("name", "seed", "loss", "loss.kind", "loss.mining", "gate")
_BASELINE_LOSS = "softmax"


def plan(config: BenchConfig, store: str) -> list[Cell]:
    """The cells in the order of the table's rows; the same configuration gives the same cells.

    Raises:
        InvalidSetting: an unknown loss, mining, preset or setting, or ones that do not fit together.
        MissingArtifact: a dataset or ImageNet weights that are not there.
        IncompatibleArtifact: a dataset that is not the one of the publication to reproduce.
        InvalidData: a dataset that cannot be trained on or judged.
    """
    _check_settings(config)
    wanted = {name: _experiments(config, name) for name in config.datasets}
    cells: list[Cell] = []
    for name, rows in wanted.items():
        dataset = _find(config, store, name)
        for (preset, loss, mining), experiment in rows:
            row = Row(dataset=dataset, preset=preset, loss=loss, mining=mining)
            _check_classes(dataset, experiment)
            seeds = range(1 if loss == RAW_PIXELS else config.seeds)
            cells += [make_cell(row, experiment.overridden([f"seed={seed}"])) for seed in seeds]
    if config.reproduce is not None:
        _check_weights_are_published(config.reproduce, cells)
    for backbone in {cell.experiment.encoder.backbone for cell in cells if not find_report(store, cell)}:
        require_weights(backbone)
    check_comparisons(config, cells)
    judged = {(c.row.dataset.fingerprint, c.experiment.evaluation): c.row.dataset for c in cells}
    for (_, evaluation), dataset in judged.items():
        require_evaluable(dataset, evaluation)
    return cells


Entry = tuple[tuple[str, str, str | None], ExperimentConfig]
"""Preset, loss and mining of a row, and what it trains."""


def _experiments(config: BenchConfig, dataset: str) -> list[Entry]:
    """The rows of one dataset."""
    bare = dataset.partition("@")[0]
    for_dataset = [
        text.partition("=")[2] for text in config.presets if text.partition("=")[0] == bare and "=" in text
    ]
    names = for_dataset or [text for text in config.presets if "=" not in text]
    rows = config.rows()
    if not names:
        raise InvalidSetting(
            f"Every dataset needs a preset; got none for {dataset}. Give one with --presets NAME or "
            f"--presets {bare}=NAME."
        )
    if rows and len(names) > 1:
        raise InvalidSetting(
            f"Where losses are named, each dataset starts from one preset; got {names} for {dataset}. Leave "
            "the losses out to have each preset as a row, or name one preset."
        )
    entries: list[Entry] = []
    first = presets.experiment(names[0])
    if RAW_PIXELS in config.baselines:
        pixels = first.overridden(_settings_for(config, bare, None))
        entries.append(((names[0], RAW_PIXELS, None), pixels))
    if _BASELINE_LOSS in config.baselines and (_BASELINE_LOSS, None) not in rows:
        entries.append(_entry(config, bare, names[0], _BASELINE_LOSS, None))
    if rows:
        entries += [_entry(config, bare, names[0], kind, mining) for kind, mining in rows]
    else:
        entries += [_entry(config, bare, name, None, None) for name in names]
    return entries


def _entry(config: BenchConfig, dataset: str, preset: str, kind: str | None, mining: str | None) -> Entry:
    """One row; a preset's own loss keeps its settings, another comes with its defaults."""
    start = presets.experiment(preset)
    kind = kind or str(start.loss.kind)
    changes = [] if kind == start.loss.kind else [f'loss={{"kind": "{kind}"}}']
    changes += [f"loss.mining={mining}"] if mining is not None else []
    changes += [*_settings_for(config, dataset, kind), f"name=bench-{dataset}"]
    try:
        made = start.overridden(changes)
    except InvalidSetting as error:
        raise InvalidSetting(
            f"The {kind} loss cannot start from preset {preset} with these settings. {error} What is meant "
            f"for one loss alone is written --set LOSS:path=value."
        ) from error
    used: Mining | None = getattr(made.loss, "mining", None)
    return (preset, kind, used if takes_mining(kind) else None), made


def _settings_for(config: BenchConfig, dataset: str, kind: str | None) -> list[str]:
    """Those for all, then those for the dataset, then those for the loss."""
    by_scope: dict[str | None, list[str]] = {}
    for text in config.settings:
        where, setting = _scope(text)
        by_scope.setdefault(where, []).append(setting)
    chosen = [*by_scope.get(None, []), *by_scope.get(dataset, []), *by_scope.get(kind, [])]
    if kind is None:  # raw pixels have no loss
        return [text for text in chosen if not text.startswith(("loss.", "memory"))]
    return chosen


def _scope(text: str) -> tuple[str | None, str]:
    """WHERE and the setting of `WHERE:path=value`."""
    path, equals, value = text.partition("=")
    where, colon, rest = path.rpartition(":")
    return (where if colon else None), f"{rest}{equals}{value}"


def _check_settings(config: BenchConfig) -> None:
    bare = {name.partition("@")[0] for name in config.datasets}
    if len(bare) < len(config.datasets):
        raise InvalidSetting(f"Each dataset must be named once; got {list(config.datasets)}.")
    config.rows()
    for text in config.presets:
        dataset, equals, _ = text.partition("=")
        if equals and dataset not in bare:
            raise InvalidSetting(f"--presets {text!r} is for a dataset of this bench, {sorted(bare)}.")
    for text in config.settings:
        where, setting = _scope(text)
        path = setting.partition("=")[0]
        if where is not None and where not in bare and where not in loss_kinds():
            raise InvalidSetting(
                f"--set WHERE:path=value needs a dataset of this bench, {sorted(bare)}, or a loss for WHERE; "
                f"got {text!r}."
            )
        if path in _SET_BY_THE_GRID or path.startswith("gate."):
            raise InvalidSetting(
                f"{path} is the grid's to set, or of no use in it; got --set {text!r}. Losses, minings and "
                "seeds have options of their own."
            )
        if path.startswith("evaluation") and where in loss_kinds():
            raise InvalidSetting(
                f"All rows of a table are judged alike; got --set {text!r}. Set it for all, or for a dataset."
            )


def _find(config: BenchConfig, store: str, name: str) -> DatasetRef:
    if config.reproduce is None:
        return find_dataset(store, name)
    family, _ = REPRODUCTIONS[config.reproduce]
    how = f"Get its official files and: dml ingest FOLDER --name {family}"
    try:
        dataset = find_dataset(store, name)
    except MissingArtifact as error:
        raise MissingArtifact(
            f"{config.reproduce} needs the dataset {name!r} in the store. {error} {how}"
        ) from error
    differs = published.data_differs(dataset, family)
    if differs:
        raise IncompatibleArtifact(
            f"{config.reproduce} needs {family} as published; {dataset} is not: {'; '.join(differs)}. {how}"
        )
    return dataset


def _check_weights_are_published(reproduce: str, cells: list[Cell]) -> None:
    for cell in cells:
        differs = published.weights_differ(cell.experiment) if cell.trains else []
        if differs:
            raise IncompatibleArtifact(
                f"{reproduce} starts from torchvision's ImageNet weights {published.IMAGENET}; "
                f"{cell.row.name} does not: {'; '.join(differs)}. Leave encoder.backbone as it is."
            )


def _check_classes(dataset: DatasetRef, experiment: ExperimentConfig) -> None:
    for split in ("train", "test"):
        if split not in dataset.splits or not dataset.splits[split].rows:
            raise InvalidData(
                f"A bench trains on a dataset's split train and judges on test; {dataset} "
                f"has {sorted(dataset.splits)}. Ingest it with another --split."
            )
    wanted = getattr(experiment.sampler, "classes_per_batch", 1)
    have = dataset.splits["train"].classes
    if have < wanted:
        raise InvalidData(
            f"A batch needs sampler.classes_per_batch = {wanted} classes; the split train of {dataset} "
            f"has {have}. Set fewer: --set {dataset.name}:sampler.classes_per_batch={have}."
        )
