"""Stanford Cars (CARS196, Krause et al. 2013) in its official layouts.

Either `cars_train/` and `cars_test/` with `devkit/cars_train_annos.mat` and
`devkit/cars_test_annos_withlabels.mat`, or one of the two alone, or `car_ims/` with `cars_annos.mat`.
The metric-learning split is by class: 1-98 train, 99-196 test (Oh Song et al. 2016, sec. 6).
"""

import io
from dataclasses import dataclass
from typing import Any

from dml.config import OfficialSplit
from dml.data.sources.files import Files
from dml.data.sources.sample import Listing, Problem, Sample
from dml.errors import InvalidData

NUM_TRAIN_CLASSES = 98
_ANNOTATIONS = {
    "cars_annos.mat": "",
    "cars_train_annos.mat": "cars_train/",
    "cars_test_annos_withlabels.mat": "cars_test/",
}
_BODIES = ("SUV", "Sedan", "Coupe", "Convertible", "Hatchback", "Wagon", "Minivan", "Van", "Cab")


@dataclass(frozen=True)
class Cars196Source:
    files: Files

    def scan(self) -> Listing:
        names = self.files.names()
        root = _root_of(names)
        present = set(names)
        labels = self._class_names(names)
        samples, problems = [], []
        for annotations, folder in _ANNOTATIONS.items():
            for path in [name for name in names if name.rsplit("/", 1)[-1] == annotations]:
                for file, class_id in self._annotations(path):
                    name = f"{root}{folder}{file}"
                    sample_id = f"{folder}{file}"
                    if not 1 <= class_id <= len(labels):
                        detail = f"class {class_id} is not one of the {len(labels)} classes of cars_meta.mat"
                        problems.append(Problem(sample_id, str(class_id), name, "no label", detail))
                        continue
                    label = labels[class_id - 1]
                    if name not in present:
                        detail = "the annotations name a file that is not there"
                        problems.append(Problem(sample_id, label, name, "missing file", detail))
                        continue
                    split = "train" if class_id <= NUM_TRAIN_CLASSES else "test"
                    samples.append(Sample(sample_id, name, label, split, _attributes(label)))
        return Listing(samples, OfficialSplit(), problems)

    def _class_names(self, names: list[str]) -> list[str]:
        meta = next((name for name in names if name.endswith(("cars_meta.mat", "cars_annos.mat"))), None)
        if meta is None:
            raise InvalidData(
                "CARS196 must bring its class names in devkit/cars_meta.mat; there is no such file."
            )
        return [str(name) for name in _read_mat(self.files.read(meta))["class_names"].ravel()]

    def _annotations(self, path: str) -> list[tuple[str, int]]:
        rows = _read_mat(self.files.read(path))["annotations"].ravel()
        key = "relative_im_path" if "relative_im_path" in rows.dtype.names else "fname"
        return [(str(row[key]), int(row["class"])) for row in rows]

    def read(self, locator: str) -> bytes:
        return self.files.read(locator)


def _read_mat(content: bytes) -> dict[str, Any]:
    from scipy.io import loadmat

    loaded: dict[str, Any] = loadmat(io.BytesIO(content), squeeze_me=True)
    return loaded


def _root_of(names: list[str]) -> str:
    """What stands before `cars_train/`, `cars_test/` or `car_ims/`: empty, or the folder inside a zip."""
    for name in names:
        for folder in ("cars_train/", "cars_test/", "car_ims/"):
            if folder in name:
                return name[: name.index(folder)]
    raise InvalidData("CARS196 must hold cars_train/, cars_test/ or car_ims/; none of them is there.")


def _attributes(label: str) -> dict[str, Any]:
    """ "AM General Hummer SUV 2000" tells maker, body and year; what a name does not tell is missing."""
    words = label.split()
    year = int(words[-1]) if words[-1].isdigit() else None
    body = next((word for word in words if word in _BODIES), None)
    maker = " ".join(words[:2]) if words[0] in ("AM", "Aston", "Land") else words[0]
    return {"maker": maker, "body": body, "year": year}
