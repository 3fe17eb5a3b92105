"""Imported vectors of another program, as an embeddings table of items without images.

`vectors/NAME/VERSION` in the store holds the table's parts and, in its folder `items`, their ids, labels and
attributes. It is published whole or not at all.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import compute

from dml import storage
from dml.data.dataset import fragments, has_dataset, read_fragment, read_rows, require_schema
from dml.data.forgotten import digest_of_id, forgotten_ids
from dml.data.items import (
    as_items,
    attribute_types_of,
    read_ids,
    read_table,
    repeated,
    seal_items,
    with_attributes,
    write_items,
)
from dml.data.quarantine import (
    QUARANTINE,
    count_refusals,
    latest_quarantine,
    read_quarantine,
    summarize_problems,
    write_quarantine,
)
from dml.data.schema import SCHEMA_VERSION, Fragment
from dml.data.sources.sample import Problem
from dml.embedding.table import part_name, read_vectors, write_part
from dml.embedding.vector_files import (
    NOT_FINITE,
    ZERO,
    Block,
    Hdf5File,
    ParquetFile,
    VectorFile,
    open_vectors,
    read_columns,
    read_hdf5_text,
    require_file,
    to_unit_length,
)
from dml.errors import (
    DmlError,
    IncompatibleArtifact,
    InvalidData,
    InvalidSetting,
    MissingArtifact,
    TooManyRefused,
)
from dml.names import split_version, versioned
from dml.progress import Ticker
from dml.refs import EmbeddingsRef, ExternalModelRef, ItemsRef
from dml.reports import ImportReport

FOLDER = "vectors"
MISSING_ID, REPEATED_ID = "missing id", "repeated id"
_ITEMS = "items"
_BLOCK_BYTES = 64 << 20
"""Of float32 vectors that are held at a time; a part of the table."""
_LENGTH_TOLERANCE = 1e-3
"""How far from 1 a length may be before a vector counts as one that was not of unit length."""

logger = logging.getLogger(__name__)


def import_vectors(
    store: str,
    name: str,
    vectors: Path,
    *,
    ids: Path | None = None,
    attributes: Path | None = None,
    embedder: str | None = None,
    license: str | None = None,
    max_quarantined: float = 0.05,
    block_bytes: int = _BLOCK_BYTES,
) -> ImportReport:
    """Publish vectors from a file under a name, to be indexed, searched and evaluated without images.

    The vectors are streamed; ids, labels and attributes are held in memory. The same content gives the same
    version, published once.

    Args:
        store: the store's URI.
        name: what `dml index` and the like will call them.
        vectors: (N, D) numbers of any type, in a .npy, .parquet or .h5 file.
        ids: N ids: the column `id` of a .csv, .tsv or .parquet table, or a .txt file of one id a line. None:
            the column `id` of the vectors' own table, else that of `attributes`, else the rows' numbers.
        attributes: a .csv, .tsv or .parquet table with a column `id`, or N rows in the vectors' order; a
            column `label` says which items are alike. None: the other columns of the vectors' own table.
        embedder: what made the vectors; None: "vectors:NAME".
        license: the text of its license.
        max_quarantined: the largest share of the N vectors that may be refused.
        block_bytes: of vectors that are held at a time.

    Returns:
        The table, and what was refused, normalised and left out.

    Raises:
        MissingArtifact: a file is not there.
        InvalidSetting: a name that a dataset has, or a file of another kind.
        InvalidData: a file is damaged, holds something else, or there are other than N ids.
        TooManyRefused: more than `max_quarantined` of the vectors; nothing is published.
        IncompatibleArtifact: items were forgotten meanwhile; nothing is published.
    """
    if not 0 <= max_quarantined <= 1:
        raise InvalidSetting(f"max_quarantined must be a share, [0, 1]; got {max_quarantined}.")
    folder = _free_folder(store, name)
    forgotten = forgotten_ids(store, name, folder=FOLDER)
    with Ticker("import") as ticker:
        ticker.begin("reading ids and attributes")
        file = open_vectors(vectors)
        items, notes = _read_items(file, ids, attributes)
        model = _external_model(embedder or f"vectors:{name}", file.dim, license)
        storage.mark_store(store)
        with storage.staged(storage.join(folder, "import")) as staged:
            ticker.begin("vectors", "rows", file.num_rows)
            table = _Table(staged, items, str(vectors), _most(file, max_quarantined), forgotten=forgotten)
            for block in file.blocks(max(1, block_bytes // (4 * file.dim))):
                table.add(block)
                ticker.count(len(block.vectors))
                if table.num_refused > table.most_refused:
                    break
            write_quarantine(latest_quarantine(store, name), table.problems)
            _require_usable(table, file, max_quarantined, latest_quarantine(store, name))
            ticker.begin("publishing", "files")
            ref = _publish(table, folder, name, model)
    if forgotten_ids(store, name, folder=FOLDER) != forgotten:  # `dml forget` may not have seen it
        storage.remove(ref.uri)
        raise IncompatibleArtifact(
            f"Imported vectors must not hold what is forgotten; items of {name} were forgotten while they "
            "were imported. Nothing was published; import them again."
        )
    if table.num_forgotten:
        notes = [*notes, f"{table.num_forgotten} forgotten items are left out"]
    was_current = storage.current(folder) == ref.version
    if not was_current:
        storage.point(folder, ref.version)
    return ImportReport(
        embeddings=find_vectors(store, versioned(name, ref.version)),
        outcome="current" if was_current else "made",
        normalized=table.num_normalized,
        refused=count_refusals(table.problems),
        quarantine=latest_quarantine(store, name),
        notes=notes,
    )


def find_vectors(store: str, name: str) -> EmbeddingsRef:
    """The imported vectors NAME, in their current version, or NAME@VERSION.

    Raises:
        InvalidSetting: that is no name.
        MissingArtifact: there are none, with those there are.
    """
    base, version = split_version(name)
    folder = storage.named_folder(store, FOLDER, base)
    return _read_ref(storage.find_version(folder, version, FOLDER))


def has_vectors(store: str, name: str) -> bool:
    """Whether vectors were imported under NAME, or as NAME@VERSION."""
    base, version = split_version(name)
    versions = storage.list_versions(storage.named_folder(store, FOLDER, base))
    return version in versions if version else bool(versions)


def vectors_containing(store: str, name: str, ids: Sequence[str]) -> list[EmbeddingsRef]:
    """The versions of imported vectors that hold one of these items, or list one in their quarantine."""
    wanted = pa.array(sorted(set(ids)), pa.large_string())

    def holds(ref: EmbeddingsRef) -> bool:
        refused = {problem.id for problem in read_quarantine(storage.join(ref.uri, QUARANTINE))}
        rows = read_rows(ref.items, columns=["id"])["id"].cast(pa.large_string())
        return not refused.isdisjoint(ids) or bool(compute.any(compute.is_in(rows, wanted)).as_py())

    return [each.ref for each in list_vectors(store) if each.ref.items.name == name and holds(each.ref)]


def require_known_vectors(store: str, name: str, ids: Sequence[str]) -> None:
    """Raise MissingArtifact where an item is in no version of imported vectors, and was not forgotten."""
    known = forgotten_ids(store, name, folder=FOLDER)
    missing = {id_ for id_ in ids if digest_of_id(id_) not in known}
    for each in list_vectors(store):
        if missing and each.ref.items.name == name:
            missing -= set(read_rows(each.ref.items, columns=["id"])["id"].to_pylist())
            refused = read_quarantine(storage.join(each.ref.uri, QUARANTINE))
            missing -= {problem.id for problem in refused}
    if missing or not ids:
        raise MissingArtifact(
            f"Items to forget must be in imported vectors {name!r}; {sorted(missing)[:10]} are in none of "
            "their versions. Give ids as `dml search` shows them. Nothing was removed."
        )


def vectors_without(store: str, ref: EmbeddingsRef, ids: Sequence[str]) -> EmbeddingsRef:
    """Publish a version without these items; the pointer is not moved. Memory: one part of the table.

    Raises:
        InvalidSetting: no item would remain.
    """
    name, gone = ref.items.name, pa.array(sorted(set(ids)), pa.large_string())
    folder = storage.named_folder(store, FOLDER, name)
    problems = read_quarantine(storage.join(ref.uri, QUARANTINE))
    pieces = read_vectors(ref)
    with storage.staged(storage.join(folder, "without")) as staged:
        source = storage.read_manifest(ref.uri)["source"]
        table = _Table(staged, pa.table({"id": pa.array([], pa.large_string())}), source, 0)
        table.problems = [problem for problem in problems if problem.id not in set(ids)]
        for fragment in fragments(ref.items):
            blocks: list[NDArray[np.float32]] = []
            while sum(map(len, blocks)) < fragment.rows:
                blocks.append(next(pieces)[1])
            items = _as_read(read_fragment(fragment, ["id", "label", *ref.items.attributes]))
            is_kept = compute.invert(compute.is_in(items["id"], gone))
            table.items = items
            table._write(items.filter(is_kept), np.concatenate(blocks)[is_kept.to_numpy()])
        if not table.fragments:
            raise InvalidSetting(
                f"Imported vectors must keep at least one item; {name}@{ref.version} holds no others. Remove "
                f"them: dml rm vectors {name}."
            )
        embedder = ref.embedder
        assert isinstance(embedder, ExternalModelRef)
        return find_vectors(store, versioned(name, _publish(table, folder, name, embedder).version))


def _as_read(items: pa.Table) -> pa.Table:
    """Stored items with the types that a file is read to."""
    fields = [f.with_type(pa.large_string()) if f.type == pa.string() else f for f in items.schema]
    return items.cast(pa.schema(fields))


def point_to(store: str, without: Mapping[str, EmbeddingsRef], name: str) -> None:
    """If the current version of imported vectors is replaced, by its URI, make its replacement current."""
    folder = storage.named_folder(store, FOLDER, name)
    with storage.locked_pointer(folder) as pointer:
        if pointer.version is not None and (uri := storage.join(folder, pointer.version)) in without:
            pointer.move(without[uri].version)


def rollback_vectors(store: str, name: str) -> EmbeddingsRef:
    """Make a former version of imported vectors the current one.

    An index that was made of other vectors stays as it is; roll that back, too.

    Args:
        store: the store's URI.
        name: NAME, the version before the current one; or NAME@VERSION, a former one.

    Raises:
        MissingArtifact: there is no such former version.
        CorruptArtifact: it cannot be read; the current version stays.
    """
    base, version = split_version(name, "vectors")
    folder = storage.named_folder(store, FOLDER, base)
    if not storage.list_versions(folder):
        raise storage.missing_version(folder, version, "vectors")
    with storage.locked_pointer(folder) as pointer:
        ref = _read_ref(storage.join(folder, pointer.rollback_target(version)))
        pointer.roll_back(ref.version)
    return ref


def list_vectors(store: str, damaged: list[DmlError] | None = None) -> list[storage.Version[EmbeddingsRef]]:
    """Every version of all imported vectors; `damaged` is for `storage.read_versions`."""
    return storage.read_versions(storage.join(store, FOLDER), _read_ref, damaged)


def _read_ref(uri: str, manifest: Mapping[str, Any] | None = None) -> EmbeddingsRef:
    ref = EmbeddingsRef(uri=uri, **(manifest or storage.read_manifest(uri))["ref"])
    require_schema(ref.items)
    return ref


def _free_folder(store: str, name: str) -> str:
    folder = storage.named_folder(store, FOLDER, name)
    if has_dataset(store, name):
        raise InvalidSetting(
            f"Imported vectors must have a name of their own; {name!r} is a dataset. Give another."
        )
    return folder


def _external_model(spec: str, dim: int, license: str | None) -> ExternalModelRef:
    fingerprint = storage.digest_of("external", spec, dim)
    return ExternalModelRef(fingerprint=fingerprint, spec=spec, dim=dim, license=license)


def _read_items(file: VectorFile, ids: Path | None, attributes: Path | None) -> tuple[pa.Table, list[str]]:
    """(N,) `id`, and `label` and attributes if there are any; and notes on what was left out."""
    for path in (ids, attributes):
        if path is not None:
            require_file(path)
    own, notes = _own_columns(file, only_ids=attributes is not None)
    if attributes is None:
        table, attributes = own, file.path
    else:
        table, notes = read_table(attributes)
        if isinstance(file, ParquetFile) and attributes != file.path:
            others = [name for name in file.other_columns if name != "id"]
            notes = [*_unread(others, file.path, f"the attributes are those of {attributes}"), *notes]
    if ids is None:
        chosen = _ids(file, own, table)
    else:
        chosen, others = read_ids(ids)
        if ids != attributes:
            notes = [*_unread(others, ids, f"--ids takes `id` alone; add --attributes {ids}"), *notes]
    if len(chosen) != file.num_rows:
        raise InvalidData(
            f"Every vector must have an id; {file.path} has {file.num_rows} vectors, and there are "
            f"{len(chosen)} ids. Give one for each vector, in the same order."
        )
    if not table.num_columns:
        return pa.table({"id": chosen}), notes
    if ids is not None and table is own and "id" in table.column_names:
        table = table.drop_columns("id")  # its rows are the vectors' own, whatever they were called there
        if not table.num_columns:
            return pa.table({"id": chosen}), notes
    items, unmatched = with_attributes(chosen, table, attributes)
    return items, [*notes, *unmatched]


def _own_columns(file: VectorFile, *, only_ids: bool) -> tuple[pa.Table, list[str]]:
    """The items' columns in the vectors' file itself."""
    if isinstance(file, ParquetFile):
        columns = [name for name in file.other_columns if name == "id" or not only_ids]
        return as_items(read_columns(file.path, columns), file.path)
    if isinstance(file, Hdf5File) and (texts := read_hdf5_text(file.path, ("id", "ids"))) is not None:
        return pa.table({"id": pa.array(texts, pa.large_string())}), []
    return pa.table({}), []


def _unread(columns: Sequence[str], path: Path, reason: str) -> list[str]:
    return [f"columns {list(columns)} of {path} are left out: {reason}"] if columns else []


def _ids(file: VectorFile, own: pa.Table, attributes: pa.Table) -> pa.ChunkedArray:
    for table in (own, attributes):
        if "id" in table.column_names:
            return table["id"]
    numbers = pa.array(np.arange(file.num_rows)).cast(pa.large_string())
    return pa.chunked_array([numbers])


def _most(file: VectorFile, share: float) -> int:
    """How many vectors may be refused."""
    return int(share * file.num_rows)


@dataclass
class _Table:
    """A table that is being written: parts, fragments and refused rows so far."""

    folder: str
    items: pa.Table
    source: str
    most_refused: int
    problems: list[Problem] = field(default_factory=list)
    num_normalized: int = 0
    fragments: list[Fragment] = field(default_factory=list)
    labels: set[str] = field(default_factory=set)
    dim: int = 0
    forgotten: frozenset[str] = frozenset()
    """Digests of ids that are left out."""
    num_forgotten: int = 0
    _next_row: int = 0

    def __post_init__(self) -> None:
        self.digest = hashlib.sha256()
        self._repeated = repeated(self.items["id"])

    @property
    def num_refused(self) -> int:
        return len(self.problems)

    @property
    def num_rows(self) -> int:
        return sum(fragment.rows for fragment in self.fragments)

    def add(self, block: Block) -> None:
        """Write the rows of a block that can be used as the next part, and their items as a fragment."""
        unit, lengths = to_unit_length(block.vectors)
        items = self.items.slice(self._next_row, len(unit))
        problems = self._problems_of(block, items, lengths)
        usable = np.ones(len(unit), dtype=np.bool_)
        usable[list(problems)] = False
        if self.forgotten:
            is_forgotten = [digest_of_id(id_ or "") in self.forgotten for id_ in items["id"].to_pylist()]
            self.num_forgotten += sum(is_forgotten)
            usable &= ~np.array(is_forgotten)
        self._next_row += len(unit)
        self.num_normalized += int((np.abs(lengths[usable] - 1) > _LENGTH_TOLERANCE).sum())
        self._write(items.filter(pa.array(usable)), unit[usable])

    def _problems_of(
        self, block: Block, items: pa.Table, lengths: NDArray[np.float64]
    ) -> dict[int, tuple[str, str]]:
        """Problem by row of the block, which is also added to the quarantine table."""
        ids = items["id"]
        is_missing = np.array([not (id_ or "").strip() for id_ in ids.to_pylist()], dtype=np.bool_)
        is_repeated = self._repeated[self._next_row : self._next_row + len(items)]
        problems = dict(block.problems)
        for rows, reason, detail in (
            (~np.isfinite(lengths), NOT_FINITE, "NaN or infinite"),
            (lengths == 0, ZERO, "has no direction"),
            (is_missing, MISSING_ID, "blank"),
            (is_repeated & ~is_missing, REPEATED_ID, "same as in an earlier row"),
        ):
            for row in np.flatnonzero(rows).tolist():
                problems.setdefault(row, (reason, detail))
        for row, (reason, detail) in sorted(problems.items()):
            id_ = ids[row].as_py() or ""
            self.problems.append(Problem(id_, "", f"{self.source}#{self._next_row + row}", reason, detail))
        return problems

    def _write(self, items: pa.Table, vectors: NDArray[np.float32]) -> None:
        fragment = write_items(self._items_folder(), items)
        if fragment is None:
            return
        part = storage.join(self.folder, part_name(len(self.fragments)))
        write_part(part, items["id"].cast(pa.string()), None, vectors)
        self.digest.update(vectors.data)
        self.fragments.append(fragment)
        self.dim = vectors.shape[1]
        if "label" in items.column_names:
            self.labels.update(items["label"].drop_null().unique().to_pylist())

    def _items_folder(self) -> str:
        return storage.make_folder(storage.join(self.folder, _ITEMS))


def _require_usable(table: _Table, file: VectorFile, most: float, quarantine: str) -> None:
    if table.num_refused > table.most_refused:
        raise TooManyRefused(
            f"At most {most:.4g} of the vectors may be refused; {table.num_refused} or more of the "
            f"{file.num_rows} of {file.path} are: {summarize_problems(table.problems)}. They are listed in "
            f"{quarantine}. Mend the file, or allow it: --max-quarantined 1."
        )
    if not table.fragments:
        raise InvalidData(
            f"{file.path} must hold a vector that can be used; none of {file.num_rows} can: "
            f"{summarize_problems(table.problems)}."
        )


def _publish(table: _Table, folder: str, name: str, model: ExternalModelRef) -> EmbeddingsRef:
    """Publish the items and the table; returns the table's ref."""
    attributes = attribute_types_of(table.items)
    names = [fragment.name for fragment in table.fragments]
    items_fingerprint = storage.digest_of("items", names, attributes)
    fingerprint = storage.digest_of(
        model.fingerprint, items_fingerprint, table.digest.hexdigest(), table.num_rows
    )
    uri = storage.join(folder, fingerprint[:12])
    items = ItemsRef(
        uri=storage.join(uri, _ITEMS),
        fingerprint=items_fingerprint,
        name=name,
        rows=table.num_rows,
        classes=len(table.labels),
        attributes=attributes,
        schema_version=SCHEMA_VERSION,
    )
    ref = EmbeddingsRef(
        uri=uri, fingerprint=fingerprint, embedder=model, items=items, dim=table.dim, rows=table.num_rows
    )
    staged_items = storage.join(table.folder, _ITEMS)
    seal_items(staged_items, items.model_dump(mode="json", exclude={"uri"}), table.fragments)
    write_quarantine(storage.join(table.folder, QUARANTINE), table.problems)
    parts = [{"name": part_name(n), "rows": f.rows} for n, f in enumerate(table.fragments)]
    description = {
        "ref": ref.model_dump(mode="json", exclude={"uri"}),
        "parts": parts,
        "source": table.source,
        "created": datetime.now(UTC).isoformat(timespec="milliseconds"),
    }
    storage.publish(table.folder, uri, description)
    return ref
