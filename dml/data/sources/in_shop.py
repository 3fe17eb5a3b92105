"""DeepFashion's In-shop Clothes Retrieval: `list_eval_partition.txt` and the images that it lists.

Source: Liu et al. 2016, CVPR, "DeepFashion". 3,997 items with 25,882 images are for training; of 3,985 other
items 14,218 images are queries and 12,612 the gallery.
"""

from dataclasses import dataclass

from dml.config import OfficialSplit
from dml.data.sources.files import FilesSource, Tree
from dml.data.sources.sample import Listing, Problem, Sample
from dml.errors import InvalidData

_LIST = "list_eval_partition.txt"
_ROLES = {"train": None, "query": "query", "gallery": "gallery"}


@dataclass(frozen=True)
class InShopSource(FilesSource):
    """One class per item; attributes `department`, `category` and, of test images, `role`: query or gallery.

    Evaluate with `role_attribute=role`.
    """

    def listing(self, tree: Tree) -> Listing:
        name = tree.named(_LIST)
        assert name is not None, "recognise() asks for it"
        lines = [line.split() for line in self.files.read_text(name).splitlines()[2:] if line.strip()]
        wrong = next((line for line in lines if len(line) != 3 or line[2] not in _ROLES), None)
        if wrong is not None:
            raise InvalidData(
                f"Every line of {name} must say IMAGE ITEM and one of {', '.join(_ROLES)}; got "
                f"{' '.join(wrong)!r}. Download it again."
            )
        base, existing = _base(tree, [path for path, _, _ in lines]), set(tree.files)
        samples, problems = [], []
        for path, item, status in lines:
            if base + path not in existing:
                problems.append(Problem(path, item, path, "missing file", "listed, but not there"))
                continue
            _, department, category, *_ = [*path.split("/"), "", ""]
            attributes = {"department": department, "category": category, "role": _ROLES[status]}
            samples.append(
                Sample(path, base + path, item, "train" if status == "train" else "test", attributes)
            )
        return Listing(samples, OfficialSplit(), problems)


def _base(tree: Tree, listed: list[str]) -> str:
    """The folder that the listed paths are relative to: `Img/`, or wherever the images were unpacked."""
    wanted = set(listed)
    for path in tree.files:
        start = path.find("img/") if path.startswith("img/") else path.find("/img/") + 1
        if path[start:] in wanted:
            return path[:start]
    return ""


def recognize(tree: Tree) -> bool:
    return tree.named(_LIST) is not None
