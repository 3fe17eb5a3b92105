"""Market-1501: `bounding_box_train`, `bounding_box_test`, `query`, with files as `0002_c1s1_000451_03.jpg`.

A file's name says the person, the camera, the sequence, the frame and the box. Images of person 0000 are
distractors, wrong answers to every query; those of -1 are poor detections, which the protocol leaves out.

Source: Zheng et al. 2015, ICCV, "Scalable Person Re-identification: A Benchmark".
"""

import re
from dataclasses import dataclass

from dml.config import OfficialSplit
from dml.data.sources.files import FilesSource, Tree
from dml.data.sources.sample import LEFT_OUT, OTHER_KIND, Listing, Problem, Sample

_TRAIN, _GALLERY, _QUERY = "bounding_box_train", "bounding_box_test", "query"
_NAME = re.compile(
    r"(?P<person>-1|\d{4})_c(?P<camera>\d)s(?P<sequence>\d)_(?P<frame>\d{6})_\d{2}.*\.jpg", re.I
)
_JUNK = "-1"
_ROLES = {_GALLERY: "gallery", _QUERY: "query"}


@dataclass(frozen=True)
class Market1501Source(FilesSource):
    """One class per person; attributes `camera`, `sequence` and, of test images, `role`: query or gallery.

    Evaluate with `role_attribute=role` and `same_camera_attribute=camera`.
    """

    def listing(self, tree: Tree) -> Listing:
        samples, problems = [], []
        for path in tree.files:
            folder, _, name = path.rpartition("/")
            part = folder.rpartition("/")[2]
            if part not in (_TRAIN, _GALLERY, _QUERY):
                continue
            id = f"{part}/{name}"
            match = _NAME.fullmatch(name)
            if match is None:
                problems.append(
                    Problem(id, "", path, OTHER_KIND, "its name is not PERSON_cCsS_FRAME_BOX.jpg")
                )
            elif match["person"] == _JUNK:
                problems.append(Problem(id, _JUNK, path, LEFT_OUT, "a poor detection, person -1"))
            else:
                attributes = {
                    "camera": f"c{match['camera']}",
                    "sequence": f"s{match['sequence']}",
                    "role": _ROLES.get(part),
                }
                split = "train" if part == _TRAIN else "test"
                samples.append(Sample(id, path, match["person"], split, attributes))
        return Listing(samples, OfficialSplit(), problems)


def recognize(tree: Tree) -> bool:
    folders = {path.split("/")[-2] for path in tree.files if path.count("/")}
    return {_TRAIN, _GALLERY, _QUERY} <= folders
