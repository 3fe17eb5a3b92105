"""A dataset version without some items: their rows, images and entries in all tables are removed.

The new version equals the result of ingesting the source again, since `forgotten.json` excludes the items.
"""

from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

import pyarrow as pa
from pyarrow import compute, parquet

from dml import storage
from dml.config import IngestConfig
from dml.data.dataset import find_dataset, fragments, list_datasets, read_fragment, read_rows
from dml.data.forgotten import digest_of_id, forgotten_ids
from dml.data.former import CLASSES
from dml.data.fragment import Row, copy_fragment
from dml.data.ingest import fingerprint_of, ingest_config_of, split_sizes
from dml.data.quarantine import QUARANTINE, latest_quarantine, read_quarantine, write_quarantine
from dml.data.sources.sample import Problem, Sample
from dml.errors import InvalidSetting, MissingArtifact
from dml.refs import DatasetRef


def versions_containing(store: str, name: str, ids: Sequence[str]) -> list[DatasetRef]:
    """The versions of a dataset that contain any of these items, or list one in their quarantine table."""
    id_array = pa.array(sorted(set(ids)), pa.large_string())
    return [ref for ref in list_datasets(store) if ref.name == name and _contains_any(ref, id_array)]


def _contains_any(ref: DatasetRef, ids: pa.Array) -> bool:
    tables = (read_fragment(uri, ["id"])["id"] for uri in fragments(ref))
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
        write_quarantine(storage.join(staged, QUARANTINE), problems)
        _write_classes(ref, staged, sorted(set(table["label"].to_pylist())))
        description = {
            **{key: value for key, value in storage.read_manifest(ref.uri).items() if key != "files"},
            "ref": new.model_dump(mode="json", exclude={"uri"}),
            "fragments": written,
        }
        storage.publish(staged, new.uri, description)
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
        }
    )


def _row(row: dict[str, object], ref: DatasetRef) -> Row:
    attributes = {name: row[name] for name in ref.attributes}
    sample = Sample(str(row["id"]), "", str(row["label"]), str(row["split"]), attributes)
    return Row(sample, str(row["sha256"]))


def _write_fragments(
    ref: DatasetRef, staged: str, removed_ids: Set[str], config: IngestConfig
) -> Iterator[dict[str, Any]]:
    """Write every fragment without the items; a fragment that contains none keeps its name and bytes."""
    for number, uri in enumerate(fragments(ref)):
        temporary_name = f".fragment-{number:08d}"
        fragment = copy_fragment(
            uri, staged, config, keep=lambda id_: id_ not in removed_ids, temporary_name=temporary_name
        )
        if fragment is not None:
            yield fragment._asdict()


def _write_classes(ref: DatasetRef, staged: str, labels: list[str]) -> None:
    """Write the class splits, without classes that lost all items, since a label can be a person's name."""
    uri = storage.join(ref.uri, CLASSES)
    filesystem, path = storage.filesystem(uri)
    with storage.reading(uri, "`dml verify --repair` makes the version again."):
        table = parquet.read_table(path, filesystem=filesystem, page_checksum_verification=True)
    lost = set(read_rows(ref, columns=["label"])["label"].to_pylist()) - set(labels)
    table = table.filter(
        compute.invert(compute.is_in(table["label"], pa.array(sorted(lost), pa.large_string())))
    )
    filesystem, path = storage.filesystem(storage.join(staged, CLASSES))
    parquet.write_table(table, path, filesystem=filesystem, compression="ZSTD", write_page_checksum=True)


def erase_from_latest_quarantine(store: str, name: str, ids: Sequence[str]) -> None:
    """Remove items from the quarantine table of a dataset's latest ingest."""
    uri = latest_quarantine(store, name)
    if storage.exists(uri):
        write_quarantine(uri, [problem for problem in read_quarantine(uri) if problem.id not in set(ids)])


def require_known(store: str, name: str, holding: Sequence[DatasetRef], ids: Sequence[str]) -> None:
    """Raise MissingArtifact if there is no such dataset, or an item is in none of its versions."""
    folder = storage.named_folder(store, "datasets", name)
    if not storage.list_versions(folder):
        raise storage.missing_version(folder, None, "dataset")
    known = forgotten_ids(store, name)
    missing = {id_ for id_ in ids if digest_of_id(id_) not in known}
    for ref in holding:
        missing -= set(read_rows(ref, columns=["id"])["id"].to_pylist())
        missing -= {problem.id for problem in read_quarantine(storage.join(ref.uri, QUARANTINE))}
    if missing or not ids:
        raise MissingArtifact(
            f"Items to forget must be in dataset {name!r}; {sorted(missing)[:10]} are in none of its "
            "versions. Give ids as `dml search` shows them. Nothing was removed."
        )


def point_without(store: str, name: str, without: Mapping[str, DatasetRef]) -> None:
    """If the current version contains the items, make its replacement in `without` current."""
    parent = storage.named_folder(store, "datasets", name)
    with storage.locked_pointer(parent) as pointer:
        if pointer.version is not None and (uri := storage.join(parent, pointer.version)) in without:
            pointer.move(without[uri].version)
