"""Which indexes are to be refreshed by themselves: `refresh.json` beside an index's versions, in the store.

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
"""The share of an index's items below which a refresh leaves the index as it is."""


def ask_refresh(
    store: str,
    name: str,
    *,
    cron: str,
    timezone: str = "UTC",
    model: str | None = None,
    dataset: str | None = None,
) -> RefreshConfig:
    """From now on the index is to be refreshed so; replaces the former wish.

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
    own_model, own_dataset = _made_with(store, name)
    config = RefreshConfig(
        cron=cron, timezone=timezone, model=model or own_model, dataset=dataset or own_dataset
    )
    _require_model(name, config.model)
    storage.write_json(_file(store, name), config.model_dump(mode="json"))
    return config


def end_refresh(store: str, name: str) -> None:
    """From now on the index stays as it is.

    Raises:
        MissingArtifact: there is no such index.
    """
    _made_with(store, name)
    storage.delete(_file(store, name))


def names_to_refresh(store: str) -> list[str]:
    """The indexes that ask to be refreshed, sorted."""
    root = storage.join(store, "indexes")
    return [
        name for name in storage.list_folders(root) if storage.exists(storage.join(root, name, REFRESH_FILE))
    ]


def find_refresh(store: str, name: str) -> RefreshConfig | None:
    """How an index asks to be refreshed; None: it does not.

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
    """How every index that asks is to be refreshed; and of those whose file is damaged, by name, why."""
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
    """Model and dataset that refresh an index: as it asks, else the names it was made with.

    Raises:
        MissingArtifact: there is no such index.
        InvalidSetting: a version, not a name; or it does not ask and names no model.
    """
    made_with = _made_with(store, name)
    schedule = find_refresh(store, name)
    model, dataset = made_with if schedule is None else (schedule.model, schedule.dataset)
    _require_model(name, model)
    return model, dataset


def require_most_still_there(index: IndexRef, fresh: DatasetRef) -> None:
    """Nobody watches a refresh: a source that is half gone, as a disk not mounted, must not become the index.

    Args:
        index: the version that answers now.
        fresh: what its dataset's source has given just now.

    Raises:
        InvalidData: fewer than `LEAST_LEFT` of the index's items would be left.
    """
    own = index.model.partition("/")[0]
    if fresh.name == index.embeddings.items.name and fresh.rows < LEAST_LEFT * index.rows:
        raise InvalidData(
            f"At least {LEAST_LEFT:.0%} of the {index.rows} items of index {index.name} must still be in its "
            f"dataset's source; {fresh}, read just now, has {fresh.rows}. The index "
            f"stays as it is. If that is all there is to be: dml index {index.name} --dataset {fresh.name}"
            f"{f' --model {own}' if own else ''}."
        )


def _made_with(store: str, name: str) -> tuple[str, str]:
    """The names of an index's model ("" where it names none) and dataset, without their versions."""
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
