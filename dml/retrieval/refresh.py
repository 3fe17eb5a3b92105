"""Schedules for refreshing indexes: the file `refresh.json` in the folder of an index.

The file is the wish itself, so it moves with the store and ends with the index; a scheduler is told of it.
"""

from pydantic import ValidationError

from dml import storage
from dml.config import RefreshConfig
from dml.embedding.imported import find_vectors
from dml.errors import CorruptArtifact, InvalidData, InvalidSetting, MissingArtifact
from dml.refs import DatasetRef, EmbeddingsRef, IndexRef, require_dataset
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
        dataset: None: the name of the dataset, or of the imported vectors, that the index was made of.

    Raises:
        MissingArtifact: there is no such index.
        InvalidSetting: a version, not a name; or no model is given and the index names none; or a model or
            dataset is given and it was made of imported vectors.
    """
    ref = _named_index(store, name)
    built_model, built_items = _built_from(ref)
    is_dataset = isinstance(ref.embeddings.items, DatasetRef)
    if not is_dataset and (model or dataset):
        raise InvalidSetting(
            f"Index {name} is of the imported vectors {built_items} and is refreshed from them; got "
            f"{model or dataset}. Leave it out."
        )
    config = RefreshConfig(
        cron=cron, timezone=timezone, model=model or built_model, dataset=dataset or built_items
    )
    if is_dataset:
        _require_model(name, config.model)
    storage.write_json(_file(store, name), config.model_dump(mode="json"))
    return config


def end_refresh(store: str, name: str) -> None:
    """Remove the schedule of an index.

    Raises:
        MissingArtifact: there is no such index.
    """
    _named_index(store, name)
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
    ref = _named_index(store, name)
    require_dataset(ref.embeddings.items, f"Refreshing index {name} from a dataset")
    made_with, schedule = _built_from(ref), find_refresh(store, name)
    model, dataset = made_with if schedule is None else (schedule.model, schedule.dataset)
    _require_model(name, model)
    return model, dataset


def refreshed_vectors(store: str, name: str) -> EmbeddingsRef | None:
    """The current version of the imported vectors that an index was made of; None: it is of a dataset.

    Raises:
        MissingArtifact: there is no such index, or there are no such vectors any more.
        InvalidSetting: a version, not a name.
    """
    items = _named_index(store, name).embeddings.items
    return None if isinstance(items, DatasetRef) else find_vectors(store, items.name)


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


def _named_index(store: str, name: str) -> IndexRef:
    """The version of an index in use; raises InvalidSetting for NAME@VERSION."""
    ref = find_index(store, name)
    if ref.name != name:
        raise InvalidSetting(f"What is refreshed must be an index's name; got {name!r}. Say {ref.name}.")
    return ref


def _built_from(ref: IndexRef) -> tuple[str, str]:
    """The names of the model ("" if unknown) and of the dataset or vectors of an index, without versions."""
    return ref.model.partition("/")[0], ref.embeddings.items.name


def _require_model(name: str, model: str) -> None:
    if not model:
        raise InvalidSetting(f"Index {name!r} names no model to refresh it with. Give one with --model.")


def _file(store: str, name: str) -> str:
    return storage.join(storage.named_folder(store, "indexes", name), REFRESH_FILE)
