"""Caltech-UCSD Birds (CUB-200-2011): `images.txt`, `image_class_labels.txt`, `classes.txt`,
`images/CLASS/*.jpg`.

Source: Wah et al. 2011, CNS-TR-2011-001. The metric-learning split, classes 1-100 and 101-200, is that of
Song et al. 2016, arXiv:1511.06452. Images are not cropped to their boxes.
"""

from dataclasses import dataclass

from dml.config import OfficialSplit
from dml.data.sources.files import FilesSource, Tree
from dml.data.sources.sample import Listing, Problem, Sample

_LABELS = "image_class_labels.txt"
_LAST_TRAIN_CLASS = 100


@dataclass(frozen=True)
class Cub200Source(FilesSource):
    """One class per species, labelled by `classes.txt`."""

    def listing(self, tree: Tree) -> Listing:
        labels = tree.named(_LABELS)
        assert labels is not None, "recognise() checks this"
        root = labels.removesuffix(_LABELS)
        paths, names = self._pairs(root + "images.txt"), self._pairs(root + "classes.txt")
        class_ids, existing = self._pairs(labels), set(tree.files)
        samples, problems = [], []
        for image, path in paths.items():
            locator, class_id = f"{root}images/{path}", class_ids.get(image, "")
            label = names.get(class_id, "")
            if locator in existing:
                split = "train" if class_id and int(class_id) <= _LAST_TRAIN_CLASS else "test"
                samples.append(Sample(path, locator, label, split))
            else:
                problems.append(Problem(path, label, locator, "missing file", "listed, but not existing"))
        return Listing(samples, OfficialSplit(), problems)

    def _pairs(self, path: str) -> dict[str, str]:
        """Lines of `NUMBER VALUE`."""
        lines = self.files.read_text(path).splitlines()
        return dict(line.strip().split(maxsplit=1) for line in lines if line.strip())


def recognize(tree: Tree) -> bool:
    return tree.named(_LABELS) is not None
