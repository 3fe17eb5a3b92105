"""Stanford Cars (CARS196) in the layouts in which it is distributed.

- the devkit: `cars_train/*.jpg` with `cars_train_annos.mat`, `cars_test/*.jpg` with
  `cars_test_annos_withlabels.mat`, and `cars_meta.mat`; either half may be missing;
- the single archive: `car_ims/*.jpg` with `cars_annos.mat`, 16,185 images.

Source: Krause et al. 2013, 3DRR. The metric-learning split, classes 1-98 and 99-196, is that of Song et al.
2016, arXiv:1511.06452. Images are not cropped to their boxes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dml.config import OfficialSplit
from dml.data.sources.files import FilesSource, Tree
from dml.data.sources.mat_file import read_mat
from dml.data.sources.sample import Listing, Problem, Sample

_LAST_TRAIN_CLASS = 98
_HALVES = {"cars_train_annos.mat": "cars_train", "cars_test_annos_withlabels.mat": "cars_test"}
_WHOLE = "cars_annos.mat"
_IMAGE_FOLDERS = ("cars_train/", "cars_test/", "car_ims/")
_MAKES_OF_TWO_WORDS = ("AM General", "Aston Martin", "Land Rover")
_BODIES = ("Cab", "Convertible", "Coupe", "Hatchback", "Minivan", "Sedan", "SUV", "Van", "Wagon")


@dataclass(frozen=True)
class Cars196Source(FilesSource):
    """One class per make, model and year; attributes `make`, `body` (missing for some) and `year`."""

    def listing(self, tree: Tree) -> Listing:
        paths = {"/".join(path.split("/")[-2:]): path for path in tree.files}
        samples, problems = [], []
        for image, class_id, label in self._annotations(tree):
            split = "train" if class_id <= _LAST_TRAIN_CLASS else "test"
            if image in paths:
                samples.append(Sample(image, paths[image], label, split, _attributes(label)))
            else:
                problems.append(Problem(image, label, image, "missing file", "annotated, but not there"))
        annotated = {sample.locator for sample in samples}
        problems += [
            Problem(image, "", path, "missing label", "there, but not annotated")
            for image, path in paths.items()
            if image.startswith(_IMAGE_FOLDERS) and path not in annotated
        ]
        return Listing(samples, OfficialSplit(), problems)

    def _annotations(self, tree: Tree) -> Iterator[tuple[str, int, str]]:
        """(folder/file, class id from 1, class name) of every annotated image."""
        whole = tree.named(_WHOLE)
        if whole is not None:
            matrix = self._matrix(whole)
            names = [str(name) for name in matrix["class_names"]]
            for row in matrix["annotations"]:
                yield str(row["relative_im_path"]), *_class_of(row, names)
            return
        meta = tree.named("cars_meta.mat")
        assert meta is not None, "recognise() asks for it"
        names = [str(name) for name in self._matrix(meta)["class_names"]]
        for file_name, folder in _HALVES.items():
            annotations = tree.named(file_name)
            if annotations is not None:
                for row in self._matrix(annotations)["annotations"]:
                    yield f"{folder}/{row['fname']}", *_class_of(row, names)

    def _matrix(self, path: str) -> dict[str, Any]:
        return read_mat(self.files.read_list(path), path)


def recognize(tree: Tree) -> bool:
    return bool(tree.named(_WHOLE) or (tree.named(*_HALVES) and tree.named("cars_meta.mat")))


def _class_of(row: dict[str, Any], names: list[str]) -> tuple[int, str]:
    """(class id from 1, class name) of an annotation."""
    class_id = int(row["class"])
    if class_id < 1:
        raise ValueError(f"class {class_id}: classes are numbered from 1")
    return class_id, names[class_id - 1]


def _attributes(label: str) -> dict[str, Any]:
    """What a class name says: "AM General Hummer SUV 2000" is make AM General, body SUV, year 2000."""
    *words, year = label.split()
    two = " ".join(words[:2])
    body = next((body for body in _BODIES if words[-1].endswith(body)), None)
    return {
        "make": two if two in _MAKES_OF_TWO_WORDS else words[0],
        "body": body,
        "year": int(year) if year.isascii() and year.isdigit() else None,
    }
