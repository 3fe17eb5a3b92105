"""Class folders: the path of the folder is the label, however deep."""

from dataclasses import dataclass

from dml.config import ClassSplit, OfficialSplit
from dml.data.schema import TEST, TRAIN
from dml.data.sources.files import Files, Tree
from dml.data.sources.sample import EMPTY_CLASS, IMAGE_SUFFIXES, OTHER_KIND, Listing, Problem, Sample


@dataclass(frozen=True)
class FolderSource:
    """`CLASS/anything.jpg`, `GROUP/CLASS/anything.png`; in a zip perhaps all in one folder more.

    Where all of it lies in the two folders `train` and `test`, these are the source's own split.
    """

    files: Files

    def list(self) -> Listing:
        tree = self.files.tree()
        wrapper = _wrapper(tree) if self.files.is_zip else ""
        ids = {path.removeprefix(wrapper): path for path in tree.files}
        is_split = {id_.split("/")[0] for id_ in ids if "/" in id_} == {TRAIN, TEST}
        samples, problems = [], []
        for id_, path in ids.items():
            folder, _, name = id_.rpartition("/")
            split, _, label = folder.partition("/") if is_split else (None, "", folder)
            if _is_image(name):
                samples.append(Sample(id_, path, label, split))
            elif folder:
                problems.append(Problem(id_, label, path, OTHER_KIND, "its name does not end as an image's"))
        problems += [
            Problem("", folder.removeprefix(wrapper), folder, EMPTY_CLASS, "a folder without files")
            for folder in _empty_folders(tree)
        ]
        return Listing(samples, OfficialSplit() if is_split else ClassSplit(), problems)

    def read(self, locator: str) -> bytes:
        return self.files.read(locator)


def _is_image(path: str) -> bool:
    return path.lower().endswith(IMAGE_SUFFIXES)


def _wrapper(tree: Tree) -> str:
    """The folder that was zipped, with its slash, if it holds all files and no image of its own; else ""."""
    tops = {path.split("/", 1)[0] + "/" for path in tree.files}
    top = tops.pop()
    is_class = any(_is_image(path) and path.count("/") == 1 for path in tree.files)
    return "" if tops or is_class or top.rstrip("/") in tree.files else top


def _empty_folders(tree: Tree) -> list[str]:
    used = {parent for path in [*tree.files, *tree.folders] for parent in _parents(path)}
    return [folder for folder in tree.folders if folder not in used]


def _parents(path: str) -> list[str]:
    """`a/b/c` lies in `a/b` and in `a`."""
    parts = path.split("/")
    return ["/".join(parts[:depth]) for depth in range(1, len(parts))]
