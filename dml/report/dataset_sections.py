"""The sections of a dataset's report: the findings of `dataset_findings`, with pictures."""

from collections.abc import Sequence
from html import escape

import numpy as np

from dml.data.quarantine import count_refusals, example_of
from dml.report import charts
from dml.report.dataset_charts import draw_class_sizes, draw_image_sizes
from dml.report.dataset_findings import one_line, pair_of, some, suspected_labels
from dml.report.dataset_view import DatasetView, EmbeddedDataset, FoundDuplicates
from dml.report.gallery import GalleryRow, Tile, draw_gallery, gallery_html
from dml.report.page import Picture, Section
from dml.report.projection import map_of
from dml.reports import (
    AttributeSummary,
    DatasetFindings,
    Extent,
    ImageSummary,
    NearDuplicateSummary,
)

CLASSES, NEAR_DUPLICATES, SUSPECTS = "classes.csv", "near_duplicates.csv", "suspects.csv"
_EXAMPLES = 3


def warnings_section(findings: DatasetFindings) -> Section:
    """The warnings as a list."""
    title = "What to look at first"
    if not findings.warnings:
        return Section(title, "Nothing noticeable.")
    items = "\n".join(f"<li>{escape(text)}</li>" for text in findings.warnings)
    return Section(title, "", html=f"<ol>\n{items}\n</ol>")


def class_sections(view: DatasetView, findings: DatasetFindings) -> list[Section]:
    """How large classes are, and which are the largest and the smallest."""
    sizes = {
        split: np.array([images for _, images in sizes], dtype=np.int64)
        for split, sizes in view.class_sizes.items()
    }
    single = [label for sizes in view.class_sizes.values() for label, images in sizes if images == 1]
    text = f"A class is in one split. {CLASSES} beside this page lists all {len(view.names):,}."
    if single:
        text += f" With a single image: {some(single)}."
    rows = [
        {
            "split": balance.split,
            "images": balance.images,
            "classes": balance.classes,
            "fewest images": balance.fewest,
            "median": f"{balance.median:g}",
            "most images": balance.most,
            "classes with one image": balance.single,
        }
        for balance in findings.splits
    ]
    picture = Picture("classes", draw_class_sizes(sizes), "Classes by how many images they have")
    extremes = [
        {"": kind, "split": size.split, "class": one_line(size.label), "images": size.images}
        for kind, classes in (("largest", findings.largest), ("smallest", findings.smallest))
        for size in classes
    ]
    return [
        Section("Classes and sizes", text, [picture], rows),
        Section("Largest and smallest classes", "", table=extremes),
    ]


def images_section(view: DatasetView, summary: ImageSummary) -> Section:
    rows = [{"format": name, "images": count} for name, count in summary.formats.items()]
    num_images = sum(summary.formats.values())
    grey = {0: "None", num_images: "All"}.get(summary.grey, f"{summary.grey:,}")
    text = (
        f"{summary.size_bytes / 2**20:,.1f} MiB in {num_images:,} files; "
        f"width {_range(summary.width)}, height {_range(summary.height)} pixels. "
        f"{grey} of them look grey, however they are stored."
    )
    if summary.width.low == summary.width.high and summary.height.low == summary.height.high:
        return Section("Image files", f"{text} All have one size.", table=rows)
    png = draw_image_sizes(view.width, view.height)
    picture = Picture(
        "image-sizes", png, "Images by their shorter side, and by their proportions where these differ"
    )
    return Section("Image files", text, [picture], rows)


def _range(extent: Extent) -> str:
    if extent.low == extent.high:
        return f"{extent.low:,.0f}"
    return f"{extent.low:,.0f} to {extent.high:,.0f} (median {extent.median:,.0f})"


def pictures_section(view: DatasetView) -> Section:
    """A few images of some classes, both spread evenly."""
    pairs = [
        (split, label, images) for split, sizes in view.class_sizes.items() for label, images in sorted(sizes)
    ]
    chosen = [pairs[number] for number in _spread(len(pairs), view.config.classes)]
    if not chosen:
        return Section("Pictures", "This report was made without pictures.")
    by_code = np.argsort(view.codes, kind="stable")
    starts = np.searchsorted(
        view.codes[by_code], np.searchsorted(view.names, [label for _, label, _ in chosen])
    )
    rows = []
    for start, (split, label, images) in zip(starts.tolist(), chosen, strict=True):
        picked = [int(by_code[start + n]) for n in _spread(images, view.config.images_per_class)]
        tiles = view.tiles(picked, [one_line(view.ids[row]) for row in picked])
        rows.append(GalleryRow(None, tiles, f"{one_line(label)}: {images:,} images, {split}"))
    more = f" … and {len(pairs) - len(chosen):,} more classes." if len(chosen) < len(pairs) else ""
    text = "Classes, and images of each, spread evenly over the dataset, not chosen for how they look." + more
    caption = f"Images of {len(chosen)} of {len(pairs):,} classes"
    picture = Picture("images", draw_gallery(rows), caption)
    return Section("Pictures", text, [picture], html=gallery_html(rows))


def _spread(length: int, most: int) -> list[int]:
    """At most so many of `range(length)`, at equal distances."""
    count = min(length, most)
    return [number * length // count for number in range(count)]


_DUPLICATES = {
    "test and train": "Near-duplicates: test images in train",
    "train": "Near-duplicates within train",
    "test": "Near-duplicates within test",
}


def duplicate_sections(view: DatasetView, summaries: Sequence[NearDuplicateSummary]) -> list[Section]:
    return [_duplicates(view, summary) for summary in summaries]


def _duplicates(view: DatasetView, summary: NearDuplicateSummary) -> Section:
    title, config = _DUPLICATES[summary.between], view.config
    rule = (
        f"Perceptual hashes that differ in at most {config.max_distance} of 64 bits, and thumbnails whose "
        f"structure is alike by at least {config.min_similarity:g}; colour is not compared."
    )
    if not summary.images:
        return Section(title, f"None. {rule}")
    duplicates = view.near_duplicates[summary.between]
    shown = duplicates.each_once()[: config.pairs]
    text = f"{_how_many(summary, view)} {rule} Only a person can decide whether both show the same picture."
    if summary.truncated:
        text += (
            f" {summary.truncated:,} images have so many candidates that only their nearest were compared."
        )
    if summary.images > len(shown):
        text += f" {len(shown):,} pairs are shown, the most alike first; all images are in {NEAR_DUPLICATES}."
    if not shown:
        return Section(title, text)
    rows = [_pair_row(view, duplicates, number) for number in shown]
    name = "near-duplicates-" + summary.between.replace(" ", "-")
    caption = f"{title}: each row a pair; ✓ green has the same label, ✗ red another"
    picture = Picture(name, draw_gallery(rows), caption)
    return Section(title, text, [picture], html=gallery_html(rows))


def _how_many(summary: NearDuplicateSummary, view: DatasetView) -> str:
    of, where = ("test", "in train") if summary.between == "test and train" else (summary.between, "there")
    total = len(view.rows_of(of))
    text = f"{summary.images:,} of {total:,} images of {of} have a near-duplicate {where}"
    if summary.other_label:
        text += f", {summary.other_label:,} of them under another label"
    at_least = "at least " if summary.truncated else ""
    return f"{text}: {at_least}{summary.pairs:,} pairs."


def _pair_row(view: DatasetView, duplicates: FoundDuplicates, number: int) -> GalleryRow:
    pair = pair_of(view, duplicates, number)
    query, answer = view.tiles(
        [int(duplicates.first[number]), int(duplicates.second[number])],
        [
            f"{one_line(pair.first_label)}: {one_line(pair.first)}",
            f"{one_line(pair.second_label)}: {one_line(pair.second)}",
        ],
    )
    same = pair.first_label == pair.second_label
    return GalleryRow(query, [Tile(answer.image, answer.text, pair.similarity, same)])


def attributes_section(view: DatasetView, summaries: Sequence[AttributeSummary]) -> Section:
    if not summaries:
        return Section("Attributes", "The dataset has none: only ids and labels.")
    rows = [
        {
            "attribute": summary.name,
            "type": summary.type,
            "missing": summary.missing,
            "different values": summary.distinct,
            "smallest": summary.low or "",
            "largest": summary.high or "",
            "most frequent": "" if summary.most_frequent is None else summary.most_frequent,
            "of so many images": summary.most_frequent_images,
        }
        for summary in summaries
    ]
    return Section(
        "Attributes", f"Of {view.dataset.rows:,} images; a search is narrowed by them.", table=rows
    )


def quarantine_section(view: DatasetView) -> Section:
    if not view.problems:
        return Section("Quarantine", "Empty: every entry of the source became a row.")
    examples: dict[str, list[str]] = {}
    for problem in sorted(view.problems):
        examples.setdefault(problem.reason, []).append(example_of(problem))
    rows = [
        {
            "reason": refusal.reason,
            "entries": refusal.rows,
            "examples": some(examples[refusal.reason], most=_EXAMPLES, between="; "),
        }
        for refusal in count_refusals(view.problems)
    ]
    text = "What of the source did not become a row, and why; quarantine.parquet in the dataset lists all."
    return Section("Quarantine", text, table=rows)


def embedding_sections(
    view: DatasetView, embedded: EmbeddedDataset | None, embedder: str | None
) -> list[Section]:
    if embedded is None:
        text = (
            "With a model there is more: labels that an embedding's neighbours contradict, and a map. "
            f"dml report {view.dataset.name} --model MODEL"
        )
        return [Section("Suspected labels and map", text)]
    return [_suspects(view, embedded, embedder), _map(view, embedded)]


def _suspects(view: DatasetView, embedded: EmbeddedDataset, embedder: str | None) -> Section:
    title, agreeing = "Suspected labels", view.config.agreeing
    if not embedded.suspects:
        return Section(
            title, f"No image's {agreeing} nearest neighbours agree on a label other than its label."
        )
    shown = embedded.suspects[: view.config.suspects]
    text = (
        f"{len(embedded.suspects):,} images whose {agreeing} nearest neighbours by {embedder} all carry one "
        "label other than theirs (fewer where that class is smaller): Wilson's edited nearest neighbour "
        f"rule (1972), with all neighbours agreeing. {len(shown):,} are shown, all are in {SUSPECTS}. Either "
        "the label is wrong or the embedding is: only a person can decide."
    )
    if not shown:
        return Section(title, text)
    rows = [_suspect_row(view, embedded, suspect.query, agreeing) for suspect in shown]
    table = [suspect.model_dump() for suspect in suspected_labels(view, embedded, view.config.suspects)]
    caption = f"{title}: each row an image and its {agreeing} nearest; ✗ red has another label"
    return Section(title, text, [Picture("suspects", draw_gallery(rows), caption)], table, gallery_html(rows))


def _suspect_row(view: DatasetView, embedded: EmbeddedDataset, query: int, count: int) -> GalleryRow:
    near = embedded.neighbors
    similarities = near.similarities[query, :count].tolist()
    ranks = [rank for rank, similarity in enumerate(similarities) if similarity > -np.inf]
    row = int(near.rows[query])
    positions = [int(embedded.positions[int(near.answers[query, rank])]) for rank in ranks]
    rows = [int(embedded.positions[row]), *positions]
    first, *tiles = view.tiles(rows, [one_line(view.labels[row]) for row in rows])
    answers = [
        Tile(tile.image, tile.text, similarities[rank], bool(near.right[query, rank]))
        for rank, tile in zip(ranks, tiles, strict=True)
    ]
    return GalleryRow(first, answers)


def _map(view: DatasetView, embedded: EmbeddedDataset) -> Section:
    classes, most = np.unique(embedded.labels), view.config.map_classes
    shown = classes[_spread(len(classes), most)]
    layout = map_of(embedded.vectors, embedded.labels, shown=shown, most=view.config.map_points)
    names = dict(enumerate(view.names.tolist()))
    png = charts.draw_map(layout, embedded.labels, names, shown)
    text = (
        f"{len(layout.rows):,} images, {layout.how}. Neighbours are reliable; how far groups are "
        "from each other, and how large they are, cannot."
    )
    caption = f"Map of the embedding: {len(shown)} of {len(classes):,} classes coloured"
    return Section("Map of the embedding", text, [Picture("map", png, caption)])
