"""The publication of a dataset version: a staged folder in, a version in the store out."""

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from dml import storage
from dml.data.class_splits import write_class_splits
from dml.data.corrected import Corrections, read_corrections
from dml.data.forgotten import digest_of_id, forgotten_ids
from dml.data.former_rows import write_ids
from dml.data.quarantine import QUARANTINE, write_quarantine
from dml.data.version import VersionRows
from dml.errors import CorruptArtifact, ForgottenMeanwhile, IncompatibleArtifact
from dml.refs import DatasetRef
from dml.reports import IngestOutcome

logger = logging.getLogger(__name__)


def publish_version(
    staged: str,
    ref: DatasetRef,
    written: VersionRows,
    class_splits: Mapping[str, str],
    this_ingest: Mapping[str, Any],
    *,
    is_current: bool,
    thorough: bool = False,
) -> IngestOutcome:
    """Publish the version; an existing version is verified, and replaced if it is damaged.

    Args:
        staged: the folder where the new fragments are.
        ref: the version.
        written: its rows.
        class_splits: the split by label that later versions must keep.
        this_ingest: the configuration, as manifests store it.
        is_current: whether it is the current version already.
        thorough: compare every byte of an existing version, not only sizes and times.
    """
    write_quarantine(storage.join(staged, QUARANTINE), written.problems)
    write_class_splits(staged, class_splits)
    write_ids(staged, [row.sample.id for row in written.rows])
    outcome: IngestOutcome = "made"
    if storage.is_complete(ref.uri):
        try:
            (storage.verify if thorough else storage.verify_opened)(ref.uri)
            outcome = "current" if is_current else "found"
        except CorruptArtifact as error:
            logger.warning("made again, since it was damaged: %s", error)
            storage.delete(ref.uri)
            outcome = "repaired"
    description = {
        "ref": ref.model_dump(mode="json", exclude={"uri"}),
        "fragments": [fragment._asdict() for fragment in written.fragments],
        **this_ingest,
        "created": datetime.now(UTC).isoformat(timespec="milliseconds"),
    }
    storage.publish(staged, ref.uri, description, written.shared)
    return outcome


def refuse_forgotten(store: str, ref: DatasetRef, written: VersionRows, outcome: IngestOutcome) -> None:
    """Remove a version with items that were forgotten while it was made, and raise.

    Args:
        store: the store's URI.
        ref: the version, published but not current yet: so `dml forget` finds it if it was not found here.
        written: its rows.
        outcome: what `publish_version` has returned; only a version that it made is removed.
    """
    forgotten = forgotten_ids(store, ref.name)
    num_forgotten = sum(digest_of_id(id_) in forgotten for id_ in written.ids) if forgotten else 0
    if num_forgotten:
        if outcome == "made":
            storage.remove(ref.uri)
            parent = storage.named_folder(store, "datasets", ref.name)
            storage.remove_unshared(parent, {fragment.name for fragment in written.fragments})
        raise ForgottenMeanwhile(
            f"A new version must not have forgotten items; {num_forgotten} items of {ref.name} were "
            "forgotten meanwhile. Nothing was published; start again. If `dml forget` was killed, give that "
            "command again first."
        )


def refuse_other_corrections(store: str, name: str, applied: Corrections) -> None:
    """Raise IncompatibleArtifact where a dataset's corrections are others than those that were applied."""
    if read_corrections(store, name) != applied:
        raise IncompatibleArtifact(
            f"An ingest must not undo corrections; items of {name} were corrected meanwhile. Nothing was "
            "published; start again."
        )
