"""CUB-200-2011 (Wah et al. 2011): `images.txt`, `image_class_labels.txt`, `classes.txt`, `images/`.

The metric-learning split is by class: the first 100 train, the last 100 test (Oh Song et al. 2016, sec. 6).
"""

from dataclasses import dataclass

from dml.config import OfficialSplit
from dml.data.sources.files import Files
from dml.data.sources.sample import Listing, Problem, Sample

NUM_TRAIN_CLASSES = 100


@dataclass(frozen=True)
class Cub200Source:
    files: Files

    def scan(self) -> Listing:
        names = self.files.names()
        root = next(name for name in names if name.endswith("images.txt"))[: -len("images.txt")]
        present = set(names)
        classes = self._table(f"{root}classes.txt")
        class_of = self._table(f"{root}image_class_labels.txt")
        samples, problems = [], []
        for image_id, path in self._table(f"{root}images.txt").items():
            name = f"{root}images/{path}"
            class_id = class_of.get(image_id, "")
            if class_id not in classes:
                detail = (
                    f"image_class_labels.txt gives it class {class_id!r}, which classes.txt does not know"
                )
                problems.append(Problem(path, class_id, name, "no label", detail))
            elif name not in present:
                detail = "images.txt names a file that is not there"
                problems.append(Problem(path, classes[class_id], name, "missing file", detail))
            else:
                split = "train" if int(class_id) <= NUM_TRAIN_CLASSES else "test"
                samples.append(Sample(path, name, classes[class_id], split))
        return Listing(samples, OfficialSplit(), problems)

    def _table(self, name: str) -> dict[str, str]:
        """A text file of `ID VALUE` lines."""
        lines = self.files.read_text(name).splitlines()
        return dict(line.split(" ", 1) for line in lines if " " in line)

    def read(self, locator: str) -> bytes:
        return self.files.read(locator)
