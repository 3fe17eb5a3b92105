"""A dataset version before it is published: results of a plan's jobs in, fragments, rows and ref out."""

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dml import storage
from dml.config import IngestConfig
from dml.data.delta import Plan
from dml.data.former_rows import FormerRows
from dml.data.fragment import FragmentResult, Row, keep_rows, make_problem
from dml.data.schema import SCHEMA_VERSION, Fragment
from dml.data.sources.sample import Problem
from dml.refs import AttributeType, DatasetRef, SplitSize
from dml.reports import DatasetChanges


@dataclass(frozen=True)
class VersionRows:
    """The fragments of a version and their rows, before it is published."""

    fragments: list[Fragment]
    rows: list[Row]
    """In the order of their positions."""
    attributes: dict[str, AttributeType]
    problems: list[Problem]
    shared: dict[str, Any]
    """The entries of the files that the former version has too."""
    contradictions: list[list[Row]]
    changes: DatasetChanges

    @property
    def ids(self) -> list[str]:
        """The ids of all rows and problems."""
        return [*(row.sample.id for row in self.rows), *(problem.id for problem in self.problems)]


def finish_version(
    config: IngestConfig,
    plan: Plan,
    results: Sequence[FragmentResult],
    attributes: dict[str, AttributeType],
    problems: Sequence[Problem],
) -> VersionRows:
    """The fragments of a version from those that stay and the results of the plan's jobs.

    Args:
        config: whether images with several labels are refused.
        plan: which fragments there are.
        results: of the plan's jobs.
        attributes: the columns' types.
        problems: the samples that were not read.

    Returns:
        The fragments, and the rows in the order of their positions. Images that are refused for their several
        labels are in neither; a job's fragment that has some is written again without them.
    """
    rows = _rows_of(plan, results)
    all_problems = [*problems, *(problem for result in results for problem in result.problems)]
    contradictions = _contradictions(rows.values())
    refused: set[str] = set()
    if config.quarantine_contradictions:
        all_problems += _contradiction_problems(contradictions)
        refused = {row.sha256 for same in contradictions for row in same}
    fragments, in_order = _assemble(plan, results, rows, refused)
    names = {fragment.name for fragment in fragments}
    shared = {name: entry for name, entry in plan.former.shared.items() if name in names}
    changes = _changes(plan.former, in_order, results)
    return VersionRows(fragments, in_order, attributes, all_problems, shared, contradictions, changes)


def _rows_of(plan: Plan, results: Sequence[FragmentResult]) -> dict[str, Row]:
    """All rows of a version by id, also those that stay."""
    sha256 = plan.former.columns.get("sha256", ())
    rows = [Row(sample, sha256[position]) for position, sample in plan.kept.items()]
    rows += [row for result in results for row in [*result.rows, *result.unchanged]]
    return {row.sample.id: row for row in rows}


def _assemble(
    plan: Plan, results: Sequence[FragmentResult], row_of: Mapping[str, Row], refused: Collection[str]
) -> tuple[list[Fragment], list[Row]]:
    """The fragments of a version and their rows, without those whose image is refused."""
    former = plan.former
    result_of = {result.number: result for result in results}
    staying = {former.ids[position] for position in plan.kept}
    staying |= {row.sample.id for result in results for row in result.unchanged}
    kept = {
        position: row_of[id_]
        for position, id_ in enumerate(former.ids)
        if id_ in staying and row_of[id_].sha256 not in refused
    }
    fragments: list[Fragment] = []
    rows: list[Row] = []
    for number, part in enumerate(plan.parts):
        if isinstance(part, int):
            fragment = plan.stored(part, kept)
            positions = range(former.starts[part], former.starts[part + 1])
            in_fragment = [kept[position] for position in positions if position in kept]
        else:
            fragment = result_of[number].fragment
            in_fragment = [row for row in result_of[number].rows if row.sha256 not in refused]
            if fragment is not None and len(in_fragment) < fragment.rows:
                fragment = keep_rows(part, fragment, in_fragment)
        if fragment is not None:
            fragments.append(fragment)
            rows += in_fragment
    return fragments, rows


def _changes(former: FormerRows, rows: Sequence[Row], results: Sequence[FragmentResult]) -> DatasetChanges:
    """How the rows differ from the former version's, and what was read for it."""
    counts: Counter[str] = Counter()
    for row in rows:
        position = former.position_of.get(row.sample.id)
        if position is None:
            counts["added"] += 1
        elif not former.is_readable(position):
            counts["unchanged"] += 1
        elif former.columns["sha256"][position] != row.sha256:
            counts["changed"] += 1
        else:
            counts["unchanged" if former.equals(position, row.sample) else "relabelled"] += 1
    ids = {row.sample.id for row in rows}
    return DatasetChanges(
        files_read=sum(result.files_read for result in results),
        bytes_read=sum(result.bytes_read for result in results),
        removed=sum(id_ not in ids for id_ in former.ids),
        **counts,
    )


def _contradictions(rows: Iterable[Row]) -> list[list[Row]]:
    """The rows of each image that has several labels, of which at most one is right.

    Published datasets contain them (22 rows of CARS196's training half), and published results include them.
    """
    same: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: (row.label, row.sample.id)):
        same.setdefault(row.sha256, []).append(row)
    return [rows for rows in same.values() if len({row.label for row in rows}) > 1]


def _contradiction_problems(contradictions: Sequence[Sequence[Row]]) -> list[Problem]:
    return [
        make_problem(
            row.sample,
            "contradictory label",
            f"the same bytes have the labels {sorted({other.label for other in rows})}",
        )
        for rows in contradictions
        for row in rows
    ]


def make_ref(parent: str, name: str, written: VersionRows) -> DatasetRef:
    """The ref of a version that is being made.

    Args:
        parent: the URI of the dataset's folder; the version is named by its content.
        name: the dataset's.
        written: its fragments and rows.
    """
    fingerprint = fingerprint_of(written.rows, written.attributes, written.problems)
    return DatasetRef(
        uri=storage.join(parent, fingerprint[:12]),
        fingerprint=fingerprint,
        name=name,
        rows=len(written.rows),
        classes=len({row.label for row in written.rows}),
        splits=split_sizes(written.rows),
        quarantined=len(written.problems),
        attributes=written.attributes,
        schema_version=SCHEMA_VERSION,
        order=order_of(row.sample.id for row in written.rows),
    )


def order_of(ids: Iterable[str]) -> str:
    """The digest of ids in their order."""
    digest = hashlib.sha256()
    for id_ in ids:
        encoded = id_.encode()
        digest.update(len(encoded).to_bytes(8, "big") + encoded)
    return digest.hexdigest()


def split_sizes(rows: Sequence[Row]) -> dict[str, SplitSize]:
    num_rows = Counter(row.split for row in rows)
    num_classes = Counter(split for split, _ in {(row.split, row.label) for row in rows})
    return {name: SplitSize(rows=num_rows[name], classes=num_classes[name]) for name in sorted(num_rows)}


def fingerprint_of(
    rows: Iterable[Row], attributes: Mapping[str, AttributeType], problems: Iterable[Problem]
) -> str:
    """SHA-256 of the rows and problems, independent of their order, location and the number of workers."""
    digest = hashlib.sha256(storage.digest_of(SCHEMA_VERSION, dict(attributes)).encode())
    for row in sorted(rows, key=lambda row: row.sample.id):
        values = [_value(row.sample.attributes.get(name), kind) for name, kind in attributes.items()]
        digest.update(storage.digest_of(row.sample.id, row.sha256, row.label, row.split, values).encode())
    digest.update(storage.digest_of(sorted([problem.id, problem.reason] for problem in problems)).encode())
    return digest.hexdigest()


def _value(value: Any, kind: AttributeType) -> Any:
    return float(value) if kind == "double" and value is not None else value
