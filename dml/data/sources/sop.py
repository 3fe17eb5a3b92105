"""Stanford Online Products: `Ebay_train.txt` and `Ebay_test.txt` list `SUPER_CLASS_final/*.JPG`.

Source: Song et al. 2016, arXiv:1511.06452; the two lists are the split, 11,318 and 11,316 classes.
"""

from dataclasses import dataclass

from dml.config import OfficialSplit
from dml.data.sources.files import FilesSource, Tree
from dml.data.sources.sample import Listing, Problem, Sample

_LISTS = {"Ebay_train.txt": "train", "Ebay_test.txt": "test"}


@dataclass(frozen=True)
class SopSource(FilesSource):
    """One class per product, labelled `SUPER_CLASS/CLASS_ID`; attribute `super_class`."""

    def listing(self, tree: Tree) -> Listing:
        existing = set(tree.files)
        samples, problems = [], []
        for name, split in _LISTS.items():
            listed = tree.named(name)
            if listed is None:
                continue
            root = listed.removesuffix(name)
            for line in self.files.read_text(listed).splitlines()[
                1:
            ]:  # image_id class_id super_class_id path
                if not line.strip():
                    continue
                _, class_id, _, path = line.split()
                super_class = path.split("/")[0].removesuffix("_final")
                label = f"{super_class}/{class_id}"
                if root + path in existing:
                    attributes = {"super_class": super_class}
                    samples.append(Sample(path, root + path, label, split, attributes))
                else:
                    problems.append(Problem(path, label, path, "missing file", "listed, but not existing"))
        return Listing(samples, OfficialSplit(), problems)


def recognize(tree: Tree) -> bool:
    return tree.named(*_LISTS) is not None
