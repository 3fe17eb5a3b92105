"""Findings about a dataset: sizes, files, attributes, near-duplicates, suspected labels, warnings."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dml.data.quarantine import count_refusals
from dml.report.dataset_view import DatasetView, EmbeddedDataset, FoundDuplicates
from dml.reports import (
    AttributeSummary,
    Between,
    ClassBalance,
    ClassSize,
    DatasetFindings,
    Extent,
    ImageSummary,
    NearDuplicatePair,
    NearDuplicateSummary,
    SuspectedLabel,
)

_CLASSES_LISTED, _NAMED, _TEXT = 5, 10, 120
_UNEVEN = 20  # times the median: a class that batches by class repeat, and others that they cut
_MISSING_SHARE = 0.2
_SINGLE = {
    "train": "no positive to learn from but itself",
    "test": "no positive, and cannot be evaluated as a query",
}


def balance_of(view: DatasetView) -> list[ClassBalance]:
    """Of each split that the dataset has."""
    rows = []
    for split, sizes in view.class_sizes.items():
        images = [size for _, size in sizes]
        rows.append(
            ClassBalance(
                split=split,
                images=sum(images),
                classes=len(images),
                fewest=min(images),
                median=float(np.median(images)),
                most=max(images),
                single=images.count(1),
            )
        )
    return rows


def class_sizes(view: DatasetView, *, largest: bool, most: int | None = None) -> list[ClassSize]:
    """The largest classes of each split, the largest first, or the smallest, the smallest first."""
    return [
        ClassSize(label=label, split=split, images=images)
        for split, sizes in view.class_sizes.items()
        for label, images in (sizes if largest else sizes[::-1])[:most]
    ]


def image_summary(view: DatasetView) -> ImageSummary:
    thumbnails = view.thumbnails
    formats, counts = np.unique(thumbnails.formats, return_counts=True)
    by_count = sorted(zip(formats.tolist(), counts.tolist(), strict=True), key=lambda f: (-f[1], f[0]))
    return ImageSummary(
        width=_extent(view.width),
        height=_extent(view.height),
        formats=dict(by_count),
        grey=int(thumbnails.is_grey.sum()),
        size_bytes=int(thumbnails.size_bytes.sum()),
    )


def _extent(values: NDArray[np.int64]) -> Extent:
    return Extent(low=float(values.min()), median=float(np.median(values)), high=float(values.max()))


def attribute_summaries(view: DatasetView) -> list[AttributeSummary]:
    """By name."""
    return [
        _attribute(name, view.dataset.attributes[name], values) for name, values in view.attributes.items()
    ]


def _attribute(name: str, kind: str, values: Sequence[Any]) -> AttributeSummary:
    counts: dict[Any, int] = {}
    for value in values:
        counts[value] = counts.get(value, 0) + 1
    missing = counts.pop(None, 0)
    # NaN is unequal to itself and would be a value of its own in every row.
    present = sorted(value for value in counts if value == value)
    unordered = sum(count for value, count in counts.items() if value != value)
    often = min(present, key=lambda value: (-counts[value], value), default=None)
    return AttributeSummary(
        name=name,
        type=kind,
        missing=missing + unordered,
        distinct=len(present),
        low=one_line(present[0]) if present else None,
        high=one_line(present[-1]) if present else None,
        most_frequent=None if often is None else one_line(often),
        most_frequent_images=0 if often is None else counts[often],
    )


def duplicate_summaries(view: DatasetView) -> list[NearDuplicateSummary]:
    """As `view.near_duplicates` orders them."""
    return [
        NearDuplicateSummary(
            between=between,
            images=len(duplicates.first),
            other_label=int((view.labels[duplicates.first] != view.labels[duplicates.second]).sum()),
            pairs=duplicates.num_pairs,
            truncated=duplicates.truncated,
            examples=[
                pair_of(view, duplicates, number) for number in duplicates.each_once()[: view.config.pairs]
            ],
        )
        for between, duplicates in view.near_duplicates.items()
    ]


def pair_of(view: DatasetView, duplicates: FoundDuplicates, number: int) -> NearDuplicatePair:
    first, second = int(duplicates.first[number]), int(duplicates.second[number])
    return NearDuplicatePair(
        first=view.ids[first],
        first_label=view.labels[first],
        second=view.ids[second],
        second_label=view.labels[second],
        distance=int(duplicates.distances[number]),
        similarity=float(duplicates.similarities[number]),
    )


def suspected_labels(
    view: DatasetView, embedded: EmbeddedDataset, most: int | None = None
) -> list[SuspectedLabel]:
    """The most similar to their neighbours first."""
    groups = []
    for suspect in embedded.suspects[:most]:
        row = int(embedded.positions[int(embedded.neighbors.rows[suspect.query])])
        groups.append(
            SuspectedLabel(
                id=view.ids[row],
                label=str(view.names[suspect.label]),
                split=view.splits[row],
                agreed=str(view.names[suspect.agreed]),
                neighbors=suspect.num_agreeing,
                similarity=suspect.similarity,
            )
        )
    return groups


def find(view: DatasetView, embedded: EmbeddedDataset | None, embedder: str | None) -> DatasetFindings:
    """All findings, without pictures."""
    findings = DatasetFindings(
        splits=balance_of(view),
        largest=class_sizes(view, largest=True, most=_CLASSES_LISTED),
        smallest=class_sizes(view, largest=False, most=_CLASSES_LISTED),
        images=image_summary(view),
        attributes=attribute_summaries(view),
        quarantine=count_refusals(view.problems),
        near_duplicates=duplicate_summaries(view),
        embedder=embedder,
        num_suspected=None if embedded is None else len(embedded.suspects),
        suspected=[] if embedded is None else suspected_labels(view, embedded, view.config.suspects),
    )
    return findings.model_copy(update={"warnings": list(warnings_of(findings))})


def warnings_of(findings: DatasetFindings) -> Iterable[str]:
    """Warnings, the most serious first."""
    sizes = {balance.split: balance for balance in findings.splits}
    for summary in findings.near_duplicates:
        if summary.between == "test and train" and summary.images:
            yield (
                f"Test images with a near-duplicate in train: {summary.images:,} of "
                f"{sizes['test'].images:,}. "
                "An evaluation on them measures memory, not generalisation."
            )
    for balance in findings.splits:
        if balance.split == "test" and balance.classes == 1:
            yield "The test split has one class: every answer would be right, and nothing can be evaluated."
        if balance.split == "train" and balance.classes == 1:
            yield "The train split has one class: there is no negative to learn from."
        if balance.single:
            of = f"{balance.single:,} of {balance.classes:,}"
            yield f"Classes of {balance.split} with a single image: {of}. It has {_SINGLE[balance.split]}."
    for summary in findings.near_duplicates:
        if summary.between != "test and train" and summary.other_label:
            yield (
                f"Images of {summary.between} with a near-duplicate there under another label: "
                f"{summary.other_label:,}. One of both labels is wrong, or an image shows both."
            )
    if findings.num_suspected:
        yield f"Suspected labels, where the nearest neighbours agree on another: {findings.num_suspected:,}."
    if findings.quarantine:
        rows = sum(refusal.rows for refusal in findings.quarantine)
        yield f"In quarantine, and so not in the dataset: {rows:,} of the source's entries."
    for balance in findings.splits:
        if balance.most >= _UNEVEN * balance.median:
            yield (
                f"The largest class of {balance.split} has {balance.most:,} images, the median class "
                f"{balance.median:,.0f}."
            )
    images = sum(balance.images for balance in findings.splits)
    for attribute in findings.attributes:
        if attribute.missing >= _MISSING_SHARE * images:
            yield f"Attribute {attribute.name} is missing in {attribute.missing / images:.0%} of the images."


def some(texts: Sequence[str], *, most: int = _NAMED, between: str = ", ") -> str:
    """The first texts, and how many more there are."""
    shown = between.join(one_line(text) for text in texts[:most])
    return shown if len(texts) <= most else f"{shown} … and {len(texts) - most:,} more"


def one_line(value: Any) -> str:
    """A value on one line, cut where it is long."""
    line = " ".join(str(value).split())
    return line if len(line) <= _TEXT else line[:_TEXT].rstrip() + "…"


def all_pairs(view: DatasetView) -> Iterable[tuple[Between, NearDuplicatePair]]:
    """Every image with a near-duplicate, beside its nearest."""
    for between, duplicates in view.near_duplicates.items():
        for number in range(len(duplicates.first)):
            yield between, pair_of(view, duplicates, number)
