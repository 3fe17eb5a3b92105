"""The configuration of a dataset's latest ingest, as manifests and the pointer store it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from dml import storage
from dml.config import IngestConfig, SplitConfig
from dml.data.dataset import find_dataset, has_dataset
from dml.errors import CorruptArtifact

_SPLIT: TypeAdapter[SplitConfig] = TypeAdapter(SplitConfig)


class LastIngest(NamedTuple):
    """How a dataset was ingested."""

    config: IngestConfig
    split: SplitConfig
    """The one that was used: the user's choice, or that of the source's layout."""

    def to_json(self) -> dict[str, Any]:
        """The form that manifests and the pointer store."""
        return {
            "ingest": self.config.model_dump(mode="json"),
            "split": self.split.model_dump(mode="json"),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any], uri: str) -> "LastIngest":
        """From the content of the file at `uri`.

        Raises:
            CorruptArtifact: it has no such content.
        """
        try:
            return cls(
                IngestConfig.model_validate(content["ingest"]), _SPLIT.validate_python(content["split"])
            )
        except (KeyError, ValidationError) as error:
            raise CorruptArtifact(
                f"{uri} must record how the dataset was ingested; it is damaged, or was written by another "
                "version of this project. Remove it, and ingest with --split."
            ) from error


def last_ingest(store: str, name: str) -> IngestConfig:
    """The configuration of a dataset's latest ingest, for repeating it.

    Raises:
        MissingArtifact: there is no such dataset.
        CorruptArtifact: the pointer or the current version's manifest is damaged.
    """
    if not has_dataset(store, name):
        raise storage.missing_version(storage.named_folder(store, "datasets", name), None, "dataset")
    # First that beside the pointer: it is there also where the current version's manifest is damaged.
    last = remembered_ingest(storage.named_folder(store, "datasets", name))
    if last is not None:
        return last.config
    ref = find_dataset(store, name)
    return LastIngest.from_json(storage.read_manifest(ref.uri), ref.uri).config


def remembered_ingest(parent: str) -> LastIngest | None:
    """The latest ingest as the pointer of a dataset's folder remembers it; None: there is no pointer.

    Raises:
        CorruptArtifact: the pointer is damaged.
    """
    remembered = storage.remembered(parent)
    return LastIngest.from_json(remembered, storage.join(parent, storage.POINTER)) if remembered else None
