"""A dataset version without some items: their rows, images and entries in all tables are removed.

The new version equals the result of ingesting the source again, since `forgotten.json` excludes the items.
Rows that a version lists as deleted are erased from its files too.
"""

from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

import pyarrow as pa
from pyarrow import compute

from dml import storage
from dml.config import IngestConfig
from dml.data.class_splits import read_class_splits, write_class_splits
from dml.data.corrected import erase_corrections
from dml.data.dataset import (
    StoredFragment,
    find_dataset,
    fragments,
    list_datasets,
    read_fragment,
    read_rows,
)
from dml.data.forgotten import digest_of_id, forgotten_ids
from dml.data.former_rows import write_ids
from dml.data.fragment import Row, copy_fragment
from dml.data.ingest import ingest_config_of
from dml.data.known_files import erase_known_files
from dml.data.quarantine import QUARANTINE, latest_quarantine, read_quarantine, write_quarantine
from dml.data.schema import Fragment
from dml.data.sources.sample import Problem, Sample
from dml.data.thumbnails import forget_fragment_thumbnails
from dml.data.version import fingerprint_of, order_of, split_sizes
from dml.errors import InvalidSetting, MissingArtifact
from dml.refs import DatasetRef


def versions_containing(store: str, name: str, ids: Sequence[str]) -> list[DatasetRef]:
    """The versions of a dataset that contain any of these items, or list one in their quarantine table."""
    id_array = pa.array(sorted(set(ids)), pa.large_string())
    return [ref for ref in list_datasets(store) if ref.name == name and _contains_any(ref, id_array)]


def _contains_any(ref: DatasetRef, ids: pa.Array) -> bool:
    tables = (read_fragment(fragment, ["id"])["id"] for fragment in fragments(ref))
    in_rows = any(compute.any(_is_in(column, ids)).as_py() for column in tables)
    refused = {problem.id for problem in read_quarantine(storage.join(ref.uri, QUARANTINE))}
    return in_rows or bool(refused & set(ids.to_pylist()))


def _is_in(column: pa.ChunkedArray, ids: pa.Array) -> pa.ChunkedArray:
    return compute.is_in(column.cast(pa.large_string()), ids)


def same_images(ref: DatasetRef, ids: Sequence[str]) -> list[str]:
    """The ids of other items of a version whose image bytes equal those of these items."""
    rows = read_rows(ref, columns=["id", "sha256"])
    is_given = _is_in(rows["id"], pa.array(sorted(set(ids)), pa.large_string()))
    digests = rows.filter(is_given)["sha256"].unique()
    others = rows.filter(compute.and_(compute.invert(is_given), compute.is_in(rows["sha256"], digests)))
    other_ids: list[str] = sorted(others["id"].to_pylist())
    return other_ids


def without_items(store: str, ref: DatasetRef, ids: Sequence[str]) -> DatasetRef:
    """Publish a version without these items; the pointer is not moved.

    Args:
        store: the store's URI.
        ref: the version that contains the items.
        ids: ids of the items.

    Returns:
        The new version; `ref` itself if it contains none of them.

    Raises:
        InvalidSetting: no item would remain.
    """
    removed_ids = set(ids)
    table = read_rows(ref)
    table = table.filter(
        compute.invert(_is_in(table["id"], pa.array(sorted(removed_ids), pa.large_string())))
    )
    refused = read_quarantine(storage.join(ref.uri, QUARANTINE))
    problems = [problem for problem in refused if problem.id not in removed_ids]
    if len(table) == ref.rows and len(problems) == len(refused):
        return ref
    if not len(table):
        raise InvalidSetting(
            f"A dataset must keep at least one item; {ref} holds no others. Remove it: "
            f"dml rm dataset {ref.name}."
        )
    new = _make_ref(store, ref, [_row(row, ref) for row in table.to_pylist()], problems)
    with storage.staged(new.uri) as staged:
        written = list(_write_fragments(ref, staged, removed_ids, ingest_config_of(ref)))
        shared = storage.read_manifest(ref.uri)["shared"]
        kept = {fragment.name for fragment in written} & shared.keys()
        write_ids(staged, table["id"].to_pylist())
        write_quarantine(storage.join(staged, QUARANTINE), problems)
        _write_classes(ref, staged, sorted(set(table["label"].to_pylist())))
        description = {
            **_description(ref),
            "ref": new.model_dump(mode="json", exclude={"uri"}),
            "fragments": [fragment._asdict() for fragment in written],
        }
        storage.publish(staged, new.uri, description, {name: shared[name] for name in sorted(kept)})
    return find_dataset(store, str(new))


def _make_ref(store: str, former: DatasetRef, rows: Sequence[Row], problems: Sequence[Problem]) -> DatasetRef:
    """The ref of a version with these rows, otherwise like the former one."""
    fingerprint = fingerprint_of(rows, former.attributes, problems)
    return former.model_copy(
        update={
            "uri": storage.join(storage.named_folder(store, "datasets", former.name), fingerprint[:12]),
            "fingerprint": fingerprint,
            "rows": len(rows),
            "classes": len({row.label for row in rows}),
            "splits": split_sizes(rows),
            "quarantined": len(problems),
            "order": order_of(row.sample.id for row in rows),
        }
    )


def _row(row: dict[str, object], ref: DatasetRef) -> Row:
    attributes = {name: row[name] for name in ref.attributes}
    sample = Sample(str(row["id"]), "", str(row["label"]), str(row["split"]), attributes)
    return Row(sample, str(row["sha256"]))


def _description(ref: DatasetRef) -> dict[str, Any]:
    """What a version's manifest says besides its files."""
    manifest = storage.read_manifest(ref.uri)
    return {key: value for key, value in manifest.items() if key not in ("files", "shared")}


def _write_fragments(
    ref: DatasetRef, staged: str, removed_ids: Set[str], config: IngestConfig
) -> Iterator[Fragment]:
    """The fragments without the items; one whose file contains none of them stays."""
    folder = storage.make_folder(storage.join(staged, storage.SHARED))
    for number, fragment in enumerate(fragments(ref)):
        ids = _ids_in_file(fragment)
        if removed_ids.isdisjoint(ids):
            yield Fragment(fragment.name, fragment.rows, fragment.deleted)
            continue
        keep = {row for row in fragment.file_rows().tolist() if ids[row] not in removed_ids}
        copied = copy_fragment(
            fragment.uri, folder, config, keep=keep, temporary_name=f".fragment-{number:08d}"
        )
        if copied is not None:
            yield copied


def _ids_in_file(fragment: StoredFragment) -> list[str]:
    """The ids of all rows of a fragment's file, deleted ones included."""
    whole = StoredFragment(fragment.uri, fragment.rows + len(fragment.deleted))
    ids: list[str] = read_fragment(whole, ["id"])["id"].to_pylist()
    return ids


def erase_remains(store: str, name: str, ids: Sequence[str]) -> None:
    """Erase items from what is left of them once no version contains them: from the files whose rows versions
    list as deleted, from the list of files read, and from the corrections. Files that no version has are
    removed."""
    erased = set(ids)
    for ref in list_datasets(store):
        if ref.name == name:
            _erase_deleted_rows(ref, erased)
    erase_known_files(store, name, ids)
    erase_corrections(store, name, ids)
    parent = storage.named_folder(store, "datasets", name)
    with storage.locked_pointer(parent):
        for entry in storage.unshared_files(parent):
            storage.delete(storage.join(parent, storage.SHARED, entry.path))


def _erase_deleted_rows(ref: DatasetRef, ids: Set[str]) -> None:
    """Write files of a version without their deleted rows, where these are of the items."""
    config, stored = ingest_config_of(ref), fragments(ref)
    with storage.staged(ref.uri) as staged:
        folder = storage.make_folder(storage.join(staged, storage.SHARED))
        result = [Fragment(fragment.name, fragment.rows, fragment.deleted) for fragment in stored]
        for number, fragment in enumerate(stored):
            if fragment.deleted and not ids.isdisjoint(_ids_in_file(fragment)):
                keep = set(fragment.file_rows().tolist())
                temporary_name = f".fragment-{number:08d}"
                copied = copy_fragment(fragment.uri, folder, config, keep=keep, temporary_name=temporary_name)
                assert copied is not None
                result[number] = copied
                forget_fragment_thumbnails(fragment)
        if any(new.name != old.name for new, old in zip(result, stored, strict=True)):
            description = {**_description(ref), "fragments": [fragment._asdict() for fragment in result]}
            storage.replace_shared(staged, ref.uri, description, [fragment.name for fragment in result])
        storage.delete(staged)


def _write_classes(ref: DatasetRef, staged: str, labels: list[str]) -> None:
    """Write the class splits, without classes that lost all items, since a label can be a person's name."""
    lost = set(read_rows(ref, columns=["label"])["label"].to_pylist()) - set(labels)
    splits = read_class_splits(ref.uri)
    write_class_splits(staged, {label: split for label, split in splits.items() if label not in lost})


def erase_from_latest_quarantine(store: str, name: str, ids: Sequence[str]) -> None:
    """Remove items from the quarantine table of a dataset's latest ingest."""
    uri = latest_quarantine(store, name)
    if storage.exists(uri):
        write_quarantine(uri, [problem for problem in read_quarantine(uri) if problem.id not in set(ids)])


def require_known(store: str, name: str, ids: Sequence[str]) -> None:
    """Raise MissingArtifact if there is no such dataset, or an item is in no file of its versions."""
    folder = storage.named_folder(store, "datasets", name)
    if not storage.list_versions(folder):
        raise storage.missing_version(folder, None, "dataset")
    known = forgotten_ids(store, name)
    missing = {id_ for id_ in ids if digest_of_id(id_) not in known}
    for ref in list_datasets(store) if missing else ():
        if ref.name != name:
            continue
        missing -= {id_ for fragment in fragments(ref) for id_ in _ids_in_file(fragment)}
        missing -= {problem.id for problem in read_quarantine(storage.join(ref.uri, QUARANTINE))}
    if missing or not ids:
        raise MissingArtifact(
            f"Items to forget must be in dataset {name!r}; {sorted(missing)[:10]} are in none of its "
            "versions. Give ids as `dml search` shows them. Nothing was removed."
        )


def point_without(store: str, name: str, without: Mapping[str, DatasetRef]) -> None:
    """If the current version contains the items, make its replacement in `without`, by its URI, current."""
    parent = storage.named_folder(store, "datasets", name)
    with storage.locked_pointer(parent) as pointer:
        if pointer.version is not None and (uri := storage.join(parent, pointer.version)) in without:
            pointer.move(without[uri].version)
