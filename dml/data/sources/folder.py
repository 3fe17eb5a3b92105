"""Class folders: the path of the folder is the label, however deep."""

from dataclasses import dataclass

from dml.config import ClassSplit
from dml.data.sources.files import Files
from dml.data.sources.sample import IMAGE_SUFFIXES, Listing, Problem, Sample


@dataclass(frozen=True)
class FolderSource:
    """`CLASS/anything.jpg`, `GROUP/CLASS/anything.png`."""

    files: Files

    def list(self) -> Listing:
        tree = self.files.tree()
        samples, problems = [], []
        for path in tree.files:
            label, _, name = path.rpartition("/")
            if name.lower().endswith(IMAGE_SUFFIXES):
                samples.append(Sample(id=path, locator=path, label=label))
            elif label:
                problems.append(Problem(path, label, path, "not an image", "a file of another kind"))
        used = {parent for path in tree.files for parent in _parents(path)}
        used |= {parent for path in tree.folders for parent in _parents(path)}
        problems += [
            Problem("", folder, folder, "empty class", "a folder without files")
            for folder in tree.folders
            if folder not in used
        ]
        return Listing(samples, ClassSplit(), problems)

    def read(self, locator: str) -> bytes:
        return self.files.read(locator)


def _parents(path: str) -> list[str]:
    """`a/b/c` lies in `a/b` and in `a`."""
    parts = path.split("/")
    return ["/".join(parts[:depth]) for depth in range(1, len(parts))]
