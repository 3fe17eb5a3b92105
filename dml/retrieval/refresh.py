"""Schedules for refreshing indexes: the file `refresh.json` in the folder of an index.

The file is the wish itself, so it moves with the store and ends with the index; a scheduler is told of it.
"""

from pydantic import ValidationError

from dml import storage
from dml.config import RefreshConfig
from dml.errors import CorruptArtifact, InvalidData, InvalidSetting, MissingArtifact
from dml.refs import DatasetRef, IndexRef, require_dataset
from dml.retrieval.index import find_index

REFRESH_FILE = "refresh.json"
LEAST_LEFT = 0.5
"""If a source has less than this fraction of the items of an index, a refresh fails."""


def ask_refresh(
    store: str,
    name: str,
    *,
    cron: str,
    timezone: str = "UTC",
    model: str | None = None,
    dataset: str | None = None,
) -> RefreshConfig:
    """Schedule the refresh of an index; replaces an earlier schedule.

    Args:
        store: the store's URI.
        name: the index's name.
        cron: when; see `RefreshConfig`.
        timezone: that of `cron`.
        model: None: the champion of the name that the index was made with.
        dataset: None: the name of the dataset that the index was made of.

    Raises:
        MissingArtifact: there is no such index.
        InvalidSetting: a version, not a name; or no model is given and the index names none.
    """
    built_model, built_dataset = _built_from(store, name)
    config = RefreshConfig(
        cron=cron, timezone=timezone, model=model or built_model, dataset=dataset or built_dataset
    )
    _require_model(name, config.model)
    storage.write_json(_file(store, name), config.model_dump(mode="json"))
    return config


def end_refresh(store: str, name: str) -> None:
    """Remove the schedule of an index.

    Raises:
        MissingArtifact: there is no such index.
    """
    _built_from(store, name)
    storage.delete(_file(store, name))


def names_to_refresh(store: str) -> list[str]:
    """The names of all scheduled indexes, sorted."""
    root = storage.join(store, "indexes")
    return [
        name for name in storage.list_folders(root) if storage.exists(storage.join(root, name, REFRESH_FILE))
    ]


def find_refresh(store: str, name: str) -> RefreshConfig | None:
    """The schedule of an index; None: it has none.

    Raises:
        InvalidData: the file is not what `ask_refresh` writes.
    """
    uri = _file(store, name)
    try:
        return RefreshConfig.model_validate(storage.read_json(uri))
    except MissingArtifact:
        return None
    except (ValidationError, CorruptArtifact) as error:
        raise InvalidData(
            f"{uri} must say when and from what the index is refreshed; it does not "
            f"({str(error).splitlines()[0]}). Ask again: dml schedule {name} --cron ..., or --off."
        ) from error


def read_refreshes(store: str) -> tuple[dict[str, RefreshConfig], dict[str, str]]:
    """The schedules of all indexes, and the errors of damaged schedule files, both by index name."""
    asking, damaged = {}, {}
    for name in names_to_refresh(store):
        try:
            config = find_refresh(store, name)
        except InvalidData as error:
            damaged[name] = str(error)
        else:
            if config is not None:
                asking[name] = config
    return asking, damaged


def refreshed_from(store: str, name: str) -> tuple[str, str]:
    """Model and dataset for refreshing an index: those of its schedule, else those it was built from.

    Raises:
        MissingArtifact: there is no such index.
        InvalidSetting: a version, not a name; or it does not ask and names no model.
    """
    made_with = _built_from(store, name)
    schedule = find_refresh(store, name)
    model, dataset = made_with if schedule is None else (schedule.model, schedule.dataset)
    _require_model(name, model)
    return model, dataset


def require_most_still_there(index: IndexRef, fresh: DatasetRef) -> None:
    """Protect an unattended refresh from an incomplete source, such as a disk that is not mounted.

    Args:
        index: the current version.
        fresh: the dataset that was just ingested.

    Raises:
        InvalidData: fewer than `LEAST_LEFT` of the index's items would be left.
    """
    model = index.model.partition("/")[0]
    if fresh.name == index.embeddings.items.name and fresh.rows < LEAST_LEFT * index.rows:
        raise InvalidData(
            f"At least {LEAST_LEFT:.0%} of the {index.rows} items of index {index.name} must still be in its "
            f"dataset's source; {fresh}, read just now, has {fresh.rows}. The index "
            f"is not changed. If the source is complete: dml index {index.name} --dataset {fresh.name}"
            f"{f' --model {model}' if model else ''}."
        )


def _built_from(store: str, name: str) -> tuple[str, str]:
    """The names of the model ("" if unknown) and the dataset of an index, without versions."""
    ref = find_index(store, name)
    if ref.name != name:
        raise InvalidSetting(f"What is refreshed must be an index's name; got {name!r}. Say {ref.name}.")
    dataset = require_dataset(ref.embeddings.items, f"Refreshing index {name}")
    return ref.model.partition("/")[0], dataset.name


def _require_model(name: str, model: str) -> None:
    if not model:
        raise InvalidSetting(f"Index {name!r} names no model to refresh it with. Give one with --model.")


def _file(store: str, name: str) -> str:
    return storage.join(storage.named_folder(store, "indexes", name), REFRESH_FILE)
