"""Class folders: every folder that holds images is a class, named by its path."""

from dataclasses import dataclass

from dml.config import ClassSplit
from dml.data.sources.files import Files
from dml.data.sources.sample import IMAGE_SUFFIXES, Listing, Problem, Sample


@dataclass(frozen=True)
class FolderSource:
    """`CLASS/image.jpg`, or deeper: `MAKER/MODEL/image.jpg` has the class `MAKER/MODEL`."""

    files: Files

    def scan(self) -> Listing:
        samples, problems = [], []
        for name in self.files.names():
            label, slash, _ = name.rpartition("/")
            if not slash:
                detail = "a file outside every class folder has no class"
                problems.append(Problem(name, "", name, "no label", detail))
            elif name.lower().endswith(IMAGE_SUFFIXES):
                samples.append(Sample(id=name, locator=name, label=label))
            else:
                detail = f"not one of the image file endings {', '.join(IMAGE_SUFFIXES)}"
                problems.append(Problem(name, label, name, "no image file name", detail))
        return Listing(samples, ClassSplit(), problems + self._empty_classes(samples))

    def _empty_classes(self, samples: list[Sample]) -> list[Problem]:
        folders = self.files.folders()
        parents = {folder.rpartition("/")[0] for folder in folders}
        filled = {sample.label for sample in samples}
        detail = "a class folder without an image"
        return [
            Problem(folder, folder, folder, "empty class", detail)
            for folder in folders
            if folder not in filled and folder not in parents
        ]

    def read(self, locator: str) -> bytes:
        return self.files.read(locator)
