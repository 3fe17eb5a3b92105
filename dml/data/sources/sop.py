"""Stanford Online Products (Oh Song et al. 2016): `Ebay_train.txt` and `Ebay_test.txt` list both splits."""

from dataclasses import dataclass

from dml.config import OfficialSplit
from dml.data.sources.files import Files
from dml.data.sources.sample import Listing, Problem, Sample

LISTS = {"Ebay_train.txt": "train", "Ebay_test.txt": "test"}


@dataclass(frozen=True)
class SopSource:
    """Lines `image_id class_id super_class_id path`; the super class is the path's first folder."""

    files: Files

    def scan(self) -> Listing:
        names = self.files.names()
        present = set(names)
        samples, problems = [], []
        for path in [name for name in names if name.rsplit("/", 1)[-1] in LISTS]:
            root, split = path[: path.rindex("Ebay_")], LISTS[path.rsplit("/", 1)[-1]]
            for line in self.files.read_text(path).splitlines()[1:]:
                fields = line.split()
                if len(fields) != 4:
                    detail = "expected image_id class_id super_class_id path"
                    problems.append(Problem(line, "", path, "no label", detail))
                    continue
                _, class_id, _, image = fields
                if root + image not in present:
                    detail = "the list names a file that is not there"
                    problems.append(Problem(image, class_id, root + image, "missing file", detail))
                    continue
                attributes = {"super_class": image.split("/")[0].removesuffix("_final")}
                samples.append(Sample(image, root + image, class_id, split, attributes))
        return Listing(samples, OfficialSplit(), problems)

    def read(self, locator: str) -> bytes:
        return self.files.read(locator)
