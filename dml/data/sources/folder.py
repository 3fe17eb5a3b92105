"""Class folders: the path of an image's folder, at any depth, is its label.

The same rules apply to a folder, a zip and S3:

1. Outer folders that contain all images are ignored.
2. If the remaining top folders are `train`, `val` and `test` (in any spelling) and contain class folders,
they
   become the attribute `part`, and do not belong to the label.
3. The rest of a path is the label.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dml.config import ClassSplit, OfficialSplit
from dml.data.schema import TEST, TRAIN
from dml.data.sources.files import FilesSource, Tree
from dml.data.sources.sample import EMPTY_CLASS, OTHER_KIND, Listing, Problem, Sample
from dml.errors import InvalidData
from dml.labels import normalized
from dml.preprocessing import SIGNATURE_BYTES, has_signature
from dml.progress import begin, count

_IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".avif",
    ".jp2", ".j2k", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm",
)  # fmt: skip
_OTHER_SUFFIXES = (
    ".txt", ".md", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".html", ".pdf", ".py", ".mat",
    ".npy", ".npz", ".parquet", ".zip", ".tar", ".gz", ".mp4", ".db",
)  # fmt: skip
_PARTS = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
_SPLITS = {"train": TRAIN, "val": TRAIN, "test": TEST}


@dataclass(frozen=True)
class FolderSource(FilesSource):
    """`CLASS/anything.jpg`, `GROUP/CLASS/anything`, `train/CLASS/anything.png`.

    An image is recognized by its name, or, if the name is unknown, by its first bytes. Parts that share no
    class are the source's split, with `val` in train; otherwise the split is by classes.
    """

    def listing(self, tree: Tree) -> Listing:
        begin("listing, telling images from other files", "files", len(tree.files))
        images = {path for path in tree.files if self._is_image(path)}
        outer = _outer_folder(images)
        parts = _parts(path.removeprefix(outer) for path in images)
        samples, problems = [], []
        for path in tree.files:
            id_ = path.removeprefix(outer)
            part, label = _part_and_label(id_.rpartition("/")[0], parts)
            if path in images and parts and part is None:
                detail = f"beside {', '.join(sorted(parts))}, which hold the classes"
                problems.append(Problem(id_, label, path, "unknown split", detail))
            elif path in images:
                split = _SPLITS[part] if part else None
                samples.append(Sample(id_, path, label, split, {"part": part} if part else {}))
            elif label and path.startswith(outer):
                problems.append(
                    Problem(id_, label, path, OTHER_KIND, "it is no image by name or first bytes")
                )
        labels = {sample.label for sample in samples}
        if labels and all(label.lower() in _PARTS for label in labels):
            raise InvalidData(
                f"{', '.join(sorted(labels))} must hold a folder for each class; in {self.files.uri} they "
                "hold images. Sort these into folders, or write a manifest (.csv)."
            )
        problems += [
            Problem("", folder.removeprefix(outer), folder, EMPTY_CLASS, "a folder without files")
            for folder in _empty_folders(tree)
        ]
        return Listing(samples, OfficialSplit() if _share_no_class(samples) else ClassSplit(), problems)

    def _is_image(self, path: str) -> bool:
        count()
        if is_named_as_image(path):
            return True
        return _may_be_image(path) and has_signature(self.files.head(path, SIGNATURE_BYTES))


def is_named_as_image(path: str) -> bool:
    """Whether a file's name has an image suffix."""
    return path.lower().endswith(_IMAGE_SUFFIXES)


def recognize(tree: Tree) -> bool:
    return any("/" in path and _may_be_image(path) for path in tree.files)


def _may_be_image(path: str) -> bool:
    return not path.lower().endswith(_OTHER_SUFFIXES)


def _outer_folder(images: set[str]) -> str:
    """The path, with its slash, of the outer folders that contain all images, but none directly."""
    outer = ""
    while True:
        below = [path.removeprefix(outer) for path in images]
        tops = {path.partition("/")[0] for path in below}
        if len(tops) != 1 or any(path.count("/") < 2 for path in below):
            return outer
        top = tops.pop()
        if top.lower() in _PARTS:
            return outer
        outer += f"{top}/"


def _parts(ids: Iterable[str]) -> dict[str, str]:
    """The part of each top folder; empty if the top folders are classes or groups of classes."""
    tops: defaultdict[str, bool] = defaultdict(bool)
    for id_ in ids:
        if "/" in id_:
            tops[id_.partition("/")[0]] |= id_.count("/") >= 2
    named = {top: _PARTS[top.lower()] for top in tops if top.lower() in _PARTS}
    with_classes = {part for top, part in named.items() if tops[top]}
    is_all = bool(with_classes) and len(named) == len(tops)
    return named if is_all or len(with_classes) >= 2 else {}


def _part_and_label(folder: str, parts: dict[str, str]) -> tuple[str | None, str]:
    top, _, rest = folder.partition("/")
    return (parts[top], rest) if top in parts else (None, folder)


def _share_no_class(samples: Sequence[Sample]) -> bool:
    """Whether the parts are a split: both have classes, and none is in both."""
    classes: dict[str | None, set[str]] = {TRAIN: set(), TEST: set()}
    for sample in samples:
        if sample.split is None:
            return False
        if sample.label:
            classes[sample.split].add(normalized(sample.label))
    return bool(classes[TRAIN] and classes[TEST]) and classes[TRAIN].isdisjoint(classes[TEST])


def _empty_folders(tree: Tree) -> list[str]:
    used = {parent for path in [*tree.files, *tree.folders] for parent in _parents(path)}
    return [folder for folder in tree.folders if folder not in used]


def _parents(path: str) -> list[str]:
    """The parent folders of a path: `a` and `a/b` for `a/b/c`."""
    parts = path.split("/")
    return ["/".join(parts[:depth]) for depth in range(1, len(parts))]
