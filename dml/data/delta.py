"""What a new version shares with the former one: which rows stay where they are, are copied, or are read.

Fragments of the former version stay as they are; rows that they have and the new version has not are listed
as deleted. Rows that are new or changed come in new fragments behind them. A fragment is written again
without its deleted rows once they are more than a quarter, and the smallest ones are merged once there are
many. So the order of equal rows depends on what was ingested before.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dml.config import IngestConfig
from dml.data.former_rows import FormerRows
from dml.data.fragment import FragmentJob, cut
from dml.data.known_files import CurrentFile, KnownFile
from dml.data.schema import Fragment
from dml.data.sources.sample import Sample, Source
from dml.refs import AttributeType

_MOST_DELETED = 0.25
_FEW_FRAGMENTS, _FRAGMENTS_PER_FULL_ONE = 8, 4
"""A first ingest leaves fragments half full on average, so twice as many as full ones."""


@dataclass(frozen=True)
class Plan:
    """The fragments of a new version, in the order of positions."""

    former: FormerRows
    parts: Sequence["int | FragmentJob"]
    """The number of a fragment that stays, or the job that makes one."""
    kept: Mapping[int, Sample]
    """The sample of each former row that stays, by position; it is not read."""

    @property
    def jobs(self) -> list[FragmentJob]:
        return [part for part in self.parts if isinstance(part, FragmentJob)]

    def stored(self, number: int, kept: Mapping[int, Any]) -> Fragment | None:
        """A former fragment without the rows that are not among the kept positions; None if none is."""
        fragment, start = self.former.fragments[number], int(self.former.starts[number])
        file_rows = fragment.file_rows()
        is_kept = np.array([start + row in kept for row in range(fragment.rows)], dtype=np.bool_)
        if not is_kept.any():
            return None
        all_rows = np.arange(fragment.rows + len(fragment.deleted))
        deleted = np.setdiff1d(all_rows, file_rows[is_kept])
        return Fragment(fragment.name, int(is_kept.sum()), tuple(deleted.tolist()))


def make_plan(
    source: Source,
    samples: Sequence[Sample],
    files: Sequence[CurrentFile],
    attributes: Mapping[str, AttributeType],
    former: FormerRows,
    known: Mapping[str, KnownFile],
    staged: str,
    config: IngestConfig,
) -> Plan:
    """Decide for every sample whether its row stays, is copied from the former version, or is read.

    Args:
        source: the samples'.
        samples: sorted by label, then id, with their split.
        files: the present file of each sample.
        attributes: of the new version; if they are others than the former's, all rows are written.
        former: the rows of the former version.
        known: the files that earlier ingests have read, by id.
        staged: where fragments are written.
        config: how large they are.
    """
    kept: dict[int, Sample] = {}
    copied: dict[str, int] = {}
    compared: dict[str, int] = {}
    for sample, file in zip(samples, files, strict=True):
        position = former.position_of.get(sample.id)
        if position is None or not former.is_readable(position):
            continue
        entry = known.get(sample.id)
        is_same = entry is not None and entry == (file.stamp, former.columns["sha256"][position])
        if not former.equals(position, sample):
            if is_same:
                copied[sample.id] = position
        elif is_same:
            kept[position] = sample
        else:
            compared[sample.id] = position
    maybe = set(compared.values())
    ids = {sample.id for sample in samples}
    again = sum(former.ids[p] in ids for p in range(len(former.ids)) if not former.is_readable(p))
    has_changes = len(kept) + len(maybe) + again < max(len(samples), len(former.ids))
    for number in _rewritten(former, kept.keys() | maybe, len(samples), attributes, config, has_changes):
        for position in range(former.starts[number], former.starts[number + 1]):
            if position in kept:
                copied[kept.pop(position).id] = position
            elif position in maybe:
                del compared[former.ids[position]]
    kept_ids = {sample.id for sample in kept.values()}
    written = {sample.id: sample for sample in samples if sample.id not in kept_ids}
    jobs = _Jobs(source, former, copied, compared, attributes, staged, config)
    return Plan(former, _parts(former, written, jobs), kept)


def _parts(former: FormerRows, written: dict[str, Sample], jobs: "_Jobs") -> list[int | FragmentJob]:
    """The former fragments, damaged ones made again, then new ones; takes the samples out of `written`."""
    parts: list[int | FragmentJob] = []
    for number in range(len(former.fragments)):
        if number in former.damaged:
            lost = former.ids[former.starts[number] : former.starts[number + 1]]
            if rows := [written.pop(id_) for id_ in lost if id_ in written]:
                parts.append(jobs.make(len(parts), rows))
        else:
            parts.append(number)
    for part in cut(list(written.values()), jobs.config.rows_per_fragment):
        parts.append(jobs.make(len(parts), part))
    return parts


def _rewritten(
    former: FormerRows,
    staying: Collection[int],
    num_rows: int,
    attributes: Mapping[str, AttributeType],
    config: IngestConfig,
    has_changes: bool,
) -> list[int]:
    """The numbers of the fragments that are written again although rows of them stay."""
    intact = [number for number in range(len(former.fragments)) if number not in former.damaged]
    if dict(attributes) != dict(former.attributes):
        return intact
    if not has_changes:
        return []
    staying_in = np.bincount(
        former.fragment_of[np.fromiter(staying, np.int64, len(staying))], minlength=len(former.fragments)
    )
    sizes = [fragment.rows + len(fragment.deleted) for fragment in former.fragments]
    rewritten = [n for n in intact if 0 < staying_in[n] < (1 - _MOST_DELETED) * sizes[n]]
    most = _FEW_FRAGMENTS + _FRAGMENTS_PER_FULL_ONE * -(-num_rows // config.rows_per_fragment)
    left = sorted(set(intact) - set(rewritten), key=lambda number: staying_in[number])
    left = [number for number in left if staying_in[number]]
    if len(left) >= most:
        merged = np.cumsum(staying_in[left]) <= config.rows_per_fragment
        rewritten += [number for number, is_merged in zip(left, merged, strict=True) if is_merged]
    return sorted(rewritten)


@dataclass(frozen=True)
class _Jobs:
    """What all jobs of a plan have in common."""

    source: Source
    former: FormerRows
    copied: Mapping[str, int]
    """The position of each row to copy, by id."""
    compared: Mapping[str, int]
    """The position of each row that stays if the content of its file is the same, by id."""
    attributes: Mapping[str, AttributeType]
    staged: str
    config: IngestConfig

    def make(self, number: int, samples: Sequence[Sample]) -> FragmentJob:
        """The job that makes the fragment of these samples."""
        rows = list(enumerate(sample.id for sample in samples))
        sha256 = self.former.columns.get("sha256", ())
        return FragmentJob(
            number,
            self.source,
            samples,
            self.attributes,
            self.staged,
            self.config,
            copied={row: self.former.copied(self.copied[id_]) for row, id_ in rows if id_ in self.copied},
            unchanged={row: sha256[self.compared[id_]] for row, id_ in rows if id_ in self.compared},
        )
