"""Tiny ImageNet: `train/WNID/images/*.JPEG`, `val/images/*.JPEG` with `val_annotations.txt`, and `test`.

Source: Stanford CS231N, 200 classes of 500, 50 and 50 images at 64 px. The test part has no labels, so it
gives no rows. The other parts share their classes, so they become the attribute `part`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from dml.config import ClassSplit
from dml.data.sources.files import FilesSource, Tree
from dml.data.sources.sample import Listing, Problem, Sample

_ANNOTATIONS = "val_annotations.txt"
_IMAGE = re.compile(r"(?:train/(?P<wnid>n\d{8})/images|(?P<part>val|test)/images)/(?P<file>[^/]+)")


@dataclass(frozen=True)
class TinyImagenetSource(FilesSource):
    """One class per WordNet id, which is its label; attributes `part`, and `name` if words.txt exists."""

    def listing(self, tree: Tree) -> Listing:
        annotations = tree.named(_ANNOTATIONS)
        assert annotations is not None, "recognise() checks this"
        root = annotations.removesuffix(_ANNOTATIONS).removesuffix("val/")
        wnid_of = dict(self._table(annotations))
        words = tree.named("words.txt")
        names = dict(self._table(words)) if words is not None else {}
        samples, problems, num_test = [], [], 0
        for path in tree.files:
            id_ = path.removeprefix(root)
            match = _IMAGE.fullmatch(id_)
            if match is None:
                continue
            if match["part"] == "test":
                num_test += 1
                continue
            label = match["wnid"] or wnid_of.pop(match["file"], "")
            attributes = {"part": match["part"] or "train", "name": names.get(label)}
            samples.append(Sample(id_, path, label, None, attributes))
        problems += [
            Problem(
                f"val/images/{file}", label, f"val/images/{file}", "missing file", "listed, but not there"
            )
            for file, label in wnid_of.items()
        ]
        if num_test:
            detail = f"{num_test} images: this half was published without labels"
            problems.append(Problem("test/images", "", f"{root}test/images", "missing label", detail))
        return Listing(samples, ClassSplit(), problems)

    def _table(self, path: str) -> Iterator[tuple[str, str]]:
        """The first two columns of a tab-separated file."""
        for line in self.files.read_text(path).splitlines():
            first, tab, rest = line.partition("\t")
            if tab:
                yield first, rest.split("\t")[0]


def recognize(tree: Tree) -> bool:
    return tree.named(_ANNOTATIONS) is not None
